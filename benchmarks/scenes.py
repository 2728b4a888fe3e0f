"""How fast scenes are made, and what their questions' words give away.

    python benchmarks/scenes.py             # one core: half a minute
    python benchmarks/scenes.py --ceiling   # and the text-only ceiling, another half

Time is the process's own (``time.process_time``), the best of three rounds on one core; other work on the machine does
not count. Everything said needs no pictures, but ``make_scenes`` always draws them.
"""

import argparse
import time
from collections.abc import Callable

from polyfuse.data.moving_scenes import ClipConfig, make_clips
from polyfuse.data.scenes import SceneConfig, make_scenes, text_only_ceiling


def rate(make: Callable[[], object], count: int, rounds: int = 3) -> float:
    """How many of ``count`` a second of one core makes."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        make()
        times.append(time.process_time() - begin)
    return count / min(times)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--ceiling", action="store_true")
    options = parser.parse_args()
    count = options.count
    scenes = make_scenes(count)
    scenes.questions()  # the weights of a configuration are found once per process
    hard = SceneConfig(least=4, most=8, sizes=("small", "medium"), background="noise", overlap=0.3)
    few, fewer = count // 4, count // 8
    long = ClipConfig(side=64, frames=16, seconds=4.0)
    work: list[tuple[str, int, Callable[[], object]]] = [
        ("scenes: pictures and attributes, 64 px", count, lambda: make_scenes(count)),
        ("the same, 32 px", count, lambda: make_scenes(count, config=SceneConfig(side=32))),
        ("the same, 64 px, 4 to 8 objects, noise, overlap", count, lambda: make_scenes(count, config=hard)),
        ("captions, one per scene", count, scenes.captions),
        ("references, five per scene", count, scenes.references),
        ("questions, four per scene", count, scenes.questions),
        ("phrases, two per scene", count, scenes.phrases),
        ("regions", count, scenes.regions),
        ("sounds of a second at 4 kHz", few, scenes.take(range(few)).sounds),
        ("clips: 12 frames of 32 px, 3 s of sound", few, lambda: make_clips(few)),
        ("clips: 16 frames of 64 px, 4 s of sound", fewer, lambda: make_clips(fewer, config=long)),
    ]
    print("| | per second of one core |\n|---|---:|")
    for name, made, make in work:
        print(f"| {name} | {rate(make, made):,.0f} |")
    if options.ceiling:
        train = make_scenes(20000).questions()
        for split in ("test", "novel"):
            table = text_only_ceiling(train, make_scenes(10000, split=split).questions())
            print(f"\n{split}\n\n| kind | by text | by form | by kind | questions |\n|---|---:|---:|---:|---:|")
            for kind in ("all", *sorted(set(table) - {"all"})):
                row = table[kind]
                shares = " | ".join(f"{100 * row[way]:.1f} %" for way in ("text", "form", "kind"))
                print(f"| {kind} | {shares} | {row['questions']:.0f} |")


if __name__ == "__main__":
    main()
