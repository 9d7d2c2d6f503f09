"""t"""
class Format: pass
class Pretrained: pass
def load_pretrained(): pass
