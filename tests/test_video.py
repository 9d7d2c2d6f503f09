"""``cojax video``: what it shows a network of a video, and what it says of it."""

import io
import itertools
import json
import sys
import wave
from fractions import Fraction

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from cojax import cli
from cojax.streaming import watch
from cojax.streaming.video import BrokenVideoError, Video, at_rate, image_of
from tests.laws import variables_of

SIZE = 16
STEP = 5  # Grey levels from frame to frame.


def encode(path, frames, rate=10, codec="libx264", pixels="yuv420p", width=32, height=24):
    """A video whose frames are all grey, each brighter than the last; or of these images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.gop_size = 4
        if isinstance(frames, int):
            grey = np.ones((height, width, 3), np.uint8)
            frames = [STEP * number * grey for number in range(frames)]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def shown(path, fps):
    """The seconds, and the numbers of the frames, that a network is shown of a grey video."""
    with Video(str(path)) as video:
        taken = [
            (float(seconds), image_of(frame, SIZE).mean() * 0.225 + 0.45)
            for seconds, frame in at_rate(video.frames(), Fraction(fps))
        ]
    seconds, greys = zip(*taken, strict=True)
    return seconds, [round(grey * 255 / STEP) for grey in greys]


@pytest.mark.parametrize(
    ("name", "rate", "fps", "numbers"),
    [
        ("video.mp4", 25, 5, [0, 5, 10, 15, 20]),
        ("video.mp4", 30, 6, [0, 5, 10, 15, 20]),
        ("video.mp4", 10, 4, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),
        ("video.mp4", 10, 20, [n // 2 for n in range(1, 48)]),
        ("video.mkv", 30, 6, [0, 5, 10, 15, 20]),  # Its times are rounded to milliseconds.
        ("video.h264", 25, 5, [0, 5, 10, 15, 20]),  # It has no times.
    ],
)
def test_frames_are_taken_by_their_times_whatever_the_rate_of_the_file(
    tmp_path, name, rate, fps, numbers
):
    seconds, taken = shown(encode(tmp_path / name, 24, rate), fps)
    assert taken == numbers
    np.testing.assert_allclose(seconds, np.arange(len(numbers)) / fps)


def timed(*seconds):
    return [(Fraction(each).limit_denominator(1000), each) for each in seconds]


def test_a_cut_in_the_times_starts_them_anew():
    taken = [frame for _, frame in at_rate(timed(0, 1, 2, 900, 901, 3, 4), Fraction(1))]
    assert taken == [0, 1, 2, 900, 901, 3, 4]


def test_a_camera_that_is_waited_for_is_not_made_up_for():
    frames = timed(0, 0.5, 3.2, 3.4, 4.1)
    assert [x for _, x in at_rate(frames, Fraction(2))] == [0, 0.5, *[3.2] * 5, 4.1, 4.1]
    assert [x for _, x in at_rate(frames, Fraction(2), live=True)] == [0, 0.5, 3.2, 4.1]


def quarters(height=32, width=64):
    """An image with dark edges, whose middle is black, red, green and blue."""
    image = np.full((height, width, 3), 255, np.uint8)
    middle = image[:, (width - height) // 2 : (width + height) // 2]
    half = height // 2
    middle[:half, :half], middle[:half, half:] = 0, (255, 0, 0)
    middle[half:, :half], middle[half:, half:] = (0, 255, 0), (0, 0, 255)
    return image


def turned(data):
    """The bytes of an mp4, to be shown turned by 90 degrees, clockwise."""
    matrix = [
        np.array(m, ">i4").tobytes()
        for m in ([1 << 16, 0, 0, 0, 1 << 16], [0, 1 << 16, 0, -(1 << 16), 0])
    ]
    before, after = data.split(b"tkhd")
    assert after.count(matrix[0]) == 1
    return before + b"tkhd" + after.replace(*matrix)


@pytest.mark.parametrize("upright", [True, False])
def test_images_are_upright_scaled_cropped_and_normalised(tmp_path, upright):
    path = encode(tmp_path / "video.mp4", [quarters()] * 2, width=64, height=32)
    if not upright:
        path.write_bytes(turned(path.read_bytes()))
    with Video(str(path)) as video:
        image = image_of(next(video.frames())[1], SIZE)
    assert (image.shape, image.dtype) == ((1, 3, SIZE, SIZE), np.float32)
    corners = image[0][:, [3, 3, 12, 12], [3, 12, 3, 12]].T
    colours = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    colours = colours if upright else colours[[2, 0, 3, 1]]
    np.testing.assert_allclose(corners, (colours - 0.45) / 0.225, atol=0.2)


def network(classes=4):
    """Two steps of an image's middle, at two places, to probabilities: delay 3."""
    return co.Sequential(
        co.Conv3d(3, classes, (3, 1, 1)),
        co.AvgPool3d((2, SIZE, SIZE), stride=1),
        co.Softmax(dim=1),
        co.Lambda(lambda x: jnp.mean(x, axis=(-2, -1))),
    )


NETWORKS = """
from tests.test_video import network

def images():
    import cojax as co
    return co.Conv3d(3, 2, (1, 1, 1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, a network and its weights, names of its classes."""
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "grey.mp4", 24)
    (folder / "nets.py").write_text(NETWORKS)
    net = network()
    co.save_torch(folder / "w.safetensors", net, variables_of(net))
    (folder / "names.txt").write_text("run\nwalk\nstand\nfall\n")
    (folder / "text.mp4").write_text("no video at all")
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    return folder


def video(folder, *arguments, source="grey.mp4", weights="w.safetensors"):
    """What ``cojax video`` does with a video of the folder."""
    own = ["--net", f"{folder}/nets.py:network", "--fps", "5", "--image-size", str(SIZE)]
    own += ["--weights", f"{folder}/{weights}"] if weights else []
    return cli.main(["video", str(folder / source), *own, *map(str, arguments)])


def predictions(printed):
    return [json.loads(line) for line in printed.splitlines()]


def expected(folder):
    """What the network makes of the clip that it is to be shown: (classes, times)."""
    with av.open(str(folder / "grey.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    greys = np.array([frame.mean() for frame in frames[::2]], np.float32) / 255
    clip = np.broadcast_to(((greys - 0.45) / 0.225)[:, None, None], (1, 3, 12, SIZE, SIZE))
    net = network()
    return np.asarray(net.apply(variables_of(net), clip)[0])


def test_a_prediction_a_line_of_the_clip_at_the_rate_asked_for(folder, capsys):
    assert video(folder, "--json", "--top", 2, "--classes", folder / "names.txt") == 0
    printed = capsys.readouterr()
    said = predictions(printed.out)
    y = expected(folder)
    assert [each["seconds"] for each in said] == [n / 5 for n in range(3, 12)]
    best = np.argsort(-y, axis=0)[:2].T
    assert [[c["class"] for c in each["top"]] for each in said] == best.tolist()
    names = ["run", "walk", "stand", "fall"]
    assert all(c["name"] == names[c["class"]] for each in said for c in each["top"])
    probabilities = [[c["probability"] for c in each["top"]] for each in said]
    np.testing.assert_allclose(probabilities, np.take_along_axis(y, best.T, axis=0).T, atol=0.02)
    assert "5 frames a second of 16 x 16 pixels, the first prediction after 0.6 s" in printed.err
    assert "12 frames in " in printed.err
    assert "; 9 predictions" in printed.err
    assert "RANDOM" not in printed.err


def test_the_classes_are_named_for_readers_and_random_weights_are_confessed(folder, capsys):
    assert video(folder, "--top", 1, weights=None) == 0
    printed = capsys.readouterr()
    first, *rest = printed.out.splitlines()
    assert len(rest) == 8
    seconds, _, probability, *name = first.split()
    assert seconds == "0.60"
    assert 0 < float(probability) < 1
    assert name[0] == "class"
    assert "RANDOM WEIGHTS" in printed.err


def test_a_network_of_the_zoo_is_shown_what_it_was_trained_on(folder, capsys, monkeypatch):
    asked = []

    def tiny(*sizes):
        asked.append(sizes)
        return co.models.cox3d(32, 2, sizes[2], width_factor=0.5, depth_factor=0.2)

    monkeypatch.setattr(co.models, "cox3d_s", tiny)
    net = tiny(160, 13, 4)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), method="declare"))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.uniform(0.1, 1, leaf.shape), shapes)
    co.save_torch(folder / "x3d.safetensors", net, variables)
    source = str(encode(folder / "long.mp4", 50, rate=5, width=32, height=32))
    arguments = ["--model", "cox3d_s", "--weights", str(folder / "x3d.safetensors")]
    names = ["--classes", str(folder / "names.txt")]
    small = ["--image-size", "32", "--pool-size", "2"]
    assert cli.main(["video", source, *arguments, *names, *small, "--json"]) == 0
    printed = capsys.readouterr()
    assert "taken for co3d X3D" in printed.err
    assert "5 frames a second of 32 x 32 pixels" in printed.err
    assert len(predictions(printed.out)) == 50 - net.delay
    monkeypatch.setattr("cojax.streaming.watch.watch", lambda *_: watch.Outcome(None, False))
    assert cli.main(["video", source, *arguments, *names]) == 0
    assert "5 frames a second of 160 x 160 pixels" in capsys.readouterr().err
    assert asked[1:] == [(32, 2, 4), (160, 13, 4)]


def test_every_network_that_can_be_asked_for_has_its_recipe():
    for name, trained in watch.TRAINED.items():
        net = getattr(co.models, name)(trained.image_size, trained.steps, 400)
        answer = net.output_spec(
            co.frames.step_spec((1, 3, trained.image_size, trained.image_size), None)
        )
        assert answer.shape == (1, 400)
    rates = {name: trained.fps for name, trained in watch.TRAINED.items()}
    assert rates == {
        "cox3d_s": 5,
        "cox3d_m": 6,
        "cox3d_l": 6,
        "coslow": Fraction(15, 4),
        "coi3d": Fraction(15, 4),
    }


@pytest.mark.parametrize("cut", ["within", "at the end of a frame"])
def test_a_broken_video_ends_behind_the_frames_that_could_be_read(folder, tmp_path, capsys, cut):
    assert video(folder, "--json") == 0
    whole = predictions(capsys.readouterr().out)
    if cut == "within":
        path = folder / "broken.mp4"
        data = bytearray((folder / "grey.mp4").read_bytes())
        with av.open(str(folder / "grey.mp4")) as container:
            places = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)
        for pos, size in places[15:]:
            data[pos : pos + size] = b"\xff" * size
    else:
        path = encode(folder / "broken.mkv", 24)
        data = path.read_bytes()
        with av.open(str(path)) as container:
            places = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)
        data = data[: places[15][0]]
    path.write_bytes(data)
    assert video(folder, "--json", source=path.name) == 1
    printed = capsys.readouterr()
    said = predictions(printed.out)
    assert 2 <= len(said) < len(whole)
    if cut == "within":
        assert said == whole[: len(said)]
    words = " is broken after 1." if cut == "within" else " is cut off: it ends at 1."
    assert f"cojax video: {path}{words}" in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        ("none.mp4", [], "none.mp4 does not open: No such file"),
        ("text.mp4", [], "text.mp4 does not open: Invalid data"),
        ("sound.wav", [], "sound.wav has no video stream"),
        ("/dev/video98", [], "camera /dev/video98 does not open"),
        ("grey.mp4", ["--classes", "{}/none.txt"], "No such file"),
        ("grey.mp4", ["--classes", "{}/text.mp4"], "--classes names 1 classes, the network has 4"),
        ("grey.mp4", ["--pool-size", "3"], "--net needs --fps and --image-size, and has a --pool"),
        ("grey.mp4", ["--top", "0"], "--top must be at least 1"),
        ("grey.mp4", ["--weights", "{}/none.pt"], "there is no file"),
        ("grey.mp4", ["--net", "{}/nets.py:images"], "must answer an image with one vector"),
    ],
)
def test_what_does_not_work_is_said_in_a_line(folder, capsys, source, arguments, words):
    weights = None if "--net" in arguments else "w.safetensors"
    arguments = [argument.format(folder) for argument in arguments]
    assert video(folder, *arguments, source=source, weights=weights) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert last.startswith("cojax video: ")
    assert words in last


@pytest.mark.parametrize("rate", ["0", "-5", "1/0", "nan", "fast"])
def test_a_rate_is_a_positive_number(folder, capsys, rate):
    with pytest.raises(SystemExit):
        video(folder, f"--fps={rate}")
    assert f"argument --fps: must be a positive number, got '{rate}'" in capsys.readouterr().err


def test_a_video_too_short_to_be_answered_says_when_it_would_be(folder, capsys):
    assert video(folder, "--fps", "1") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (
        "no prediction: the first comes with frame 4, at 3.0 s, and there are 2.0 s" in printed.err
    )


def test_without_pyav_the_extra_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert video(folder) == 2
    assert "needs PyAV: pip install 'cojax[video]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["a\nb b\n\nc\n", '["a", "b b", "c"]', '{"b b": 1, "\\"a\\"": 0, "c": 2}'],
)
def test_class_names_are_lines_or_json(tmp_path, text):
    (tmp_path / "names").write_text(text)
    assert watch.class_names(tmp_path / "names") == ["a", "b b", "c"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "b": 2}', '{"a": "0"}', '{"a": 0, "b": 0}'])
def test_class_names_that_do_not_count_are_refused(tmp_path, text):
    (tmp_path / "names").write_text(text)
    with pytest.raises(ValueError, match=r"names no classes|must give each name a number"):
        watch.class_names(tmp_path / "names")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_drawn_on_terminals_alone_and_goes_away(folder, monkeypatch, capsys):
    assert video(folder) == 0
    assert "\r" not in capsys.readouterr().err
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert video(folder) == 0
    bars = terminal.getvalue().split("\r")
    assert "2.2/2.4 s" in bars[-2]
    assert bars[-2].count("━") == 27
    assert bars[-1].startswith("\x1b[K12 frames in ")


def test_classes_are_drawn_over_time(folder, tmp_path, capsys):
    assert video(folder, "--plot", tmp_path / "classes.png") == 0
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def camera(monkeypatch):
    """A camera made up by FFmpeg."""
    made_up = ("testsrc2=size=32x24:rate=25", "lavfi")
    monkeypatch.setattr("cojax.streaming.video._camera", lambda source: made_up)


@pytest.mark.usefixtures("camera")
def test_a_camera_is_watched_until_interrupted_and_then_drawn(
    folder, tmp_path, capsys, monkeypatch
):
    counted = itertools.count(1)

    def interrupted(frame, size):
        if next(counted) > 8:
            raise KeyboardInterrupt
        return image_of(frame, size)

    monkeypatch.setattr(watch, "image_of", interrupted)
    picture = tmp_path / "camera.png"
    assert video(folder, "--json", "--plot", picture, source="0") == 130
    printed = capsys.readouterr()
    assert [p["seconds"] for p in predictions(printed.out)] == [0.6, 0.8, 1.0, 1.2, 1.4]
    assert "8 frames in " in printed.err
    assert picture.exists()


def test_frames_that_a_camera_garbles_are_left_out(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (6, 24, 32, 3), np.uint8)
    path = encode(tmp_path / "video.avi", images, codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xd8", places[2])
    end = data.index(b"\xff\xd9", start)
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with Video(str(path)) as broken, pytest.raises(BrokenVideoError, match=r"broken after 0.1 s"):
        list(broken.frames())
    monkeypatch.setattr("cojax.streaming.video._camera", lambda source: (source, "avi"))
    with Video(str(path)) as broken:
        assert [float(seconds) for seconds, _ in broken.frames()] == [0, 0.1, 0.3, 0.4, 0.5]
