"""The command line: ``cojax demo``, ``cojax stream``, ``cojax video`` and ``cojax summary``."""

import argparse
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax

import cojax as co
from cojax.models.skeleton import DATASETS
from cojax.pictures import pyplot
from cojax.streaming.watch import TRAINED

_DEMO = "cojax.demo.network:activity_network"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    The status is 0 on success, 1 if a video breaks off, 2 if the arguments cannot be used, and 130
    if the user interrupts.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, TypeError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader has closed the pipe: there is nowhere to write to, and nothing to report.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"cojax {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cojax", description=co.__doc__)
    parser.add_argument("--version", action="version", version=f"cojax {co.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo",
        help="stream 40 smart-watch recordings through a trained network",
        description="Streams 40 embedded smart-watch recordings through a trained network, one "
        "sample at a time, and compares the stream with the clips.",
    )
    demo.add_argument("--plot", metavar="FILE.png", help="draw one recording (needs matplotlib)")
    demo.add_argument(
        "--recording",
        type=int,
        default=39,
        metavar="N",
        help="the one to draw (default %(default)s)",
    )
    demo.set_defaults(run=_demo)

    stream = commands.add_parser(
        "stream",
        help="answer samples from standard input, line by line, or those of a file",
        description="Reads samples from standard input, a line of numbers each, and answers every "
        "line at once. Without --net or --model it runs the network of the demo.",
    )
    stream.add_argument(
        "file",
        nargs="?",
        metavar="FILE.npy",
        help="an array (T, ...) whose rows are the samples, instead of standard input; a signal "
        "may be (T,), skeletons (T, joints, 3) or (T, persons, joints, 3)",
    )
    network = stream.add_mutually_exclusive_group()
    network.add_argument(
        "--model", choices=("cost_gcn", "coa_gcn", "cos_tr"), help="a skeleton network of the zoo"
    )
    network.add_argument(
        "--net",
        metavar="WHERE:FUNCTION",
        default=_DEMO,
        help="a function that returns the network, in a module or a .py file (default %(default)s)",
    )
    stream.add_argument(
        "--dataset",
        choices=tuple(DATASETS),
        default="ntu60",
        help="the skeletons that the --model knows (default %(default)s)",
    )
    stream.add_argument("--weights", metavar="FILE", help="the network's PyTorch checkpoint")
    stream.add_argument(
        "--shape", metavar="C[,H,W]", help="the shape of a sample (default: as long as line 1)"
    )
    stream.add_argument("--labels", metavar="A,B,...", help="names of the outputs")
    stream.add_argument("--json", action="store_true", help="answer with a JSON object a line")
    stream.add_argument(
        "--state",
        metavar="FILE",
        help="resume from this file if it is there, and save to it when the input ends",
    )
    stream.set_defaults(run=_stream)

    video = commands.add_parser(
        "video",
        help="say what happens in a video or before a camera",
        description="Shows a video to a network, at the rate and size it was trained on, and "
        "prints the most probable classes with every prediction.",
    )
    video.add_argument("source", metavar="FILE_OR_CAMERA", help="a file, /dev/video0, or a number")
    network = video.add_mutually_exclusive_group(required=True)
    network.add_argument("--model", choices=tuple(TRAINED), help="a video network of the zoo")
    network.add_argument(
        "--net",
        metavar="WHERE:FUNCTION",
        help="a function that returns a network of images (B, 3, H, W) to probabilities, in a "
        "module or a .py file",
    )
    video.add_argument("--weights", metavar="FILE", help="its checkpoint, else random weights")
    video.add_argument(
        "--classes", metavar="FILE", help="names of the classes: one a line, or JSON"
    )
    video.add_argument(
        "--top", type=int, default=3, metavar="K", help="classes to print (%(default)s)"
    )
    video.add_argument("--json", action="store_true", help="print a JSON object a prediction")
    video.add_argument("--plot", metavar="FILE.png", help="draw the classes (needs matplotlib)")
    video.add_argument(
        "--fps", type=_rate, metavar="N", help="frames a second (default: as trained)"
    )
    video.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side of the images (default: as trained)"
    )
    video.add_argument(
        "--pool-size",
        type=int,
        metavar="STEPS",
        help="frames that a prediction averages: more are slower to answer, and more certain "
        "(default: the length of the clips it was trained on)",
    )
    video.set_defaults(run=_video)

    summary = commands.add_parser(
        "summary",
        help="print the layers of a network, with their sizes, costs and timing",
        description="Prints the layers of a network: the shapes, parameters, multiply-accumulates "
        "(MACs) and state of a step, and their delays, receptive fields and strides.",
    )
    summary.add_argument(
        "net",
        metavar="WHERE:FUNCTION",
        help="a function that returns the network, in a module or a .py file",
    )
    summary.add_argument("--shape", metavar="C[,H,W]", required=True, help="the shape of a sample")
    summary.add_argument("--depth", type=int, metavar="N", help="how many levels to go down")
    summary.set_defaults(run=_summary)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from cojax.demo import plot, recordings, run

    data = recordings.load("test")
    if not 1 <= options.recording <= len(data.x):
        raise ValueError(f"--recording must be from 1 to {len(data.x)}, got {options.recording}")
    if options.plot:
        pyplot()
    outcome = run.run()
    if options.plot:
        number = options.recording - 1
        plot.draw(data, number, outcome.outputs[number], options.plot)
        print(f"\ndrew recording {options.recording} in {options.plot}")
    return 0


def _stream(options: argparse.Namespace) -> int:
    from cojax.streaming import arrays, lines

    net, variables, labels = _stream_network(options)
    labels = options.labels.split(",") if options.labels else labels
    recording = arrays.load(options.file) if options.file else None
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # Undecodable bytes make a malformed line.
    incoming: Any = iter(sys.stdin)
    if options.shape:
        shape = _shape(options.shape)
    elif options.model:
        shape = [3, DATASETS[options.dataset][0].joints, 2]
    elif options.net == _DEMO:
        shape = [6]
    elif recording is not None:
        shape = list(recording.shape[1:]) or [1]
    else:
        first = next(incoming, None)
        if first is None:
            return 0
        shape = [len(first.replace(",", " ").split())]
        incoming = (line for part in ([first], incoming) for line in part)
    parse: Callable[[Any, Sequence[int]], Any] = lines.parse
    if recording is not None:
        incoming, parse = arrays.as_steps(recording, shape), arrays.parse
    stream = lines.open_stream(net, variables, shape, options.state)
    answers = net.output_spec(stream.spec)
    if isinstance(answers, tuple):
        raise ValueError(f"the network has {len(answers)} outputs, and a line can answer with one")
    width = answers.shape[1]
    if labels is not None and len(labels) != width:
        raise ValueError(f"--labels names {len(labels)} outputs, the network has {width}")
    lines.answer(
        stream, incoming, sys.stdout, sys.stderr, labels, options.json, options.state, parse
    )
    return 0


def _stream_network(options: argparse.Namespace) -> tuple[co.CoModule, Any, list[str] | None]:
    """Returns the network, its variables, and the names of its outputs if they are known."""
    from cojax.demo import network

    if options.model:
        net = getattr(co.models, options.model)(options.dataset)
    else:
        net = _network(options.net)
        if options.net == _DEMO and not options.weights:
            return net, network.trained_variables(net), list(network.LABELS)
    if not options.weights:
        raise ValueError("--net and --model need --weights, the checkpoint with their weights")
    if options.model:
        return net, co.models.load_pretrained(net, options.weights).variables, None
    return net, co.load_torch(net, options.weights), None


def _video(options: argparse.Namespace) -> int:
    from cojax.streaming import watch
    from cojax.streaming.video import Video

    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    if options.plot:
        pyplot()
    names = watch.class_names(options.classes) if options.classes else None
    with Video(options.source) as video:
        net, size, fps = _video_network(options, len(names) if names else 400)
        variables = _video_variables(options, net)
        stream = co.Stream(net, variables, (1, 3, size, size))
        answers = net.output_spec(stream.spec)
        if isinstance(answers, tuple) or len(answers.shape) != 2:
            raise ValueError("the network must answer an image with one vector of probabilities")
        classes = answers.shape[1]
        names = names or [f"class {number}" for number in range(classes)]
        if len(names) != classes:
            raise ValueError(f"--classes names {len(names)} classes, the network has {classes}")
        print(
            f"{options.model or options.net}: {float(fps):g} frames a second of {size} x {size} "
            f"pixels, the first prediction after {float(net.delay / fps):.1f} s; compiling",
            file=sys.stderr,
        )
        predictions = []

        def tell(prediction: watch.Prediction) -> None:
            print(watch.line_of(prediction, names, options.top, options.json), flush=True)
            if options.plot:
                predictions.append(prediction)

        outcome = watch.watch(video, stream, fps, tell, sys.stderr)
    if predictions:
        title = options.source if options.weights else f"{options.source} (random weights)"
        watch.draw(predictions, names, options.top, title, options.plot)
    if outcome.complaint:
        print(f"cojax video: {outcome.complaint}", file=sys.stderr)
        return 1
    return 130 if outcome.interrupted else 0


def _video_network(options: argparse.Namespace, classes: int) -> tuple[co.CoModule, int, Fraction]:
    """Returns the network, the side of its images, and the frames per second that it is given."""
    if options.net:
        if not options.fps or not options.image_size or options.pool_size:
            raise ValueError("--net needs --fps and --image-size, and has a --pool-size of its own")
        return _network(options.net), options.image_size, options.fps
    trained = TRAINED[options.model]
    size = trained.image_size if options.image_size is None else options.image_size
    pool = trained.steps if options.pool_size is None else options.pool_size
    net = getattr(co.models, options.model)(size, pool, classes)
    return net, size, options.fps or trained.fps


def _video_variables(options: argparse.Namespace, net: co.CoModule) -> Any:
    if options.weights and options.model:
        pretrained = co.models.load_pretrained(net, options.weights)
        print(f"{options.weights}: taken for {pretrained.format}", file=sys.stderr)
        return pretrained.variables
    if options.weights:
        return co.load_torch(net, options.weights)
    print(
        "cojax video: RANDOM WEIGHTS, so that the predictions mean nothing; --weights FILE loads "
        "trained ones",
        file=sys.stderr,
    )
    return net.init(jax.random.key(0, impl="rbg"), method="declare")


def _summary(options: argparse.Namespace) -> int:
    shape = (1, *_shape(options.shape))
    print(co.summary(_network(options.net), shape, options.depth))
    return 0


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return rate


def _shape(sizes: str) -> list[int]:
    try:
        return [int(size) for size in sizes.split(",")]
    except ValueError as error:
        raise ValueError(f"--shape is C[,H,W], as in 3,224,224, got {sizes!r}") from error


def _network(where: str) -> co.CoModule:
    """Returns the network made by a function in an importable module or a file."""
    place, _, name = where.rpartition(":")
    if not place:
        raise ValueError(f"a network is WHERE:FUNCTION, as in my_networks.py:tiny, got {where!r}")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("cojax_user_network", place)
        if spec is None or spec.loader is None:
            raise ValueError(f"{place} cannot be imported")
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    if not hasattr(module, name):
        raise ValueError(f"{place} has no function {name!r}")
    net = getattr(module, name)()
    if not isinstance(net, co.CoModule):
        raise ValueError(f"{where} returned a {type(net).__name__}, expected a CoModule")
    return net


if __name__ == "__main__":
    sys.exit(main())
