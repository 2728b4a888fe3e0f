"""Tiny copies of published data sets: the same files, keys and quirks, three pictures each."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (40, 20), colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format="PNG" if path.suffix == ".png" else "JPEG")
    return path


def dump(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


INFO = {"info": {"year": 2014, "version": "1.0"}, "licenses": [{"id": 1, "name": "a", "url": "u"}]}


def coco_image(number: int, split: str = "train2014") -> dict[str, Any]:
    prefix = f"COCO_{split}_" if split.endswith("2014") else ""
    return {
        "license": 1, "file_name": f"{prefix}{number:012d}.jpg", "coco_url": "http://", "height": 20, "width": 40,
        "date_captured": "2013-11-14 17:02:52", "flickr_url": "http://", "id": number,
    }  # fmt: skip


def coco(folder: Path, year: int = 2014) -> Path:
    """Train pictures 9 and 25 (the file of 25 is missing), val picture 42."""
    for split, numbers in ((f"train{year}", (9, 25)), (f"val{year}", (42,))):
        images = [coco_image(number, split) for number in numbers]
        picture(folder / split / images[0]["file_name"])
        captions = [
            {"image_id": number, "id": 100 * number + i, "caption": f"Caption {i} of  {number}.\n"}
            for i in (1, 0)
            for number in numbers
        ]
        dump(folder / "annotations" / f"captions_{split}.json", {**INFO, "images": images, "annotations": captions})
        boxes = [
            {"segmentation": [[1, 2, 3, 4]], "area": 9.0, "iscrowd": 0, "image_id": n, "bbox": [10, 5, 20.0, 10],
             "category_id": 18, "id": n}
            for n in numbers
        ] + [
            {"segmentation": {"counts": [1], "size": [20, 40]}, "area": 9, "iscrowd": 1, "image_id": numbers[0],
             "bbox": [0, 0, 40, 20], "category_id": 1, "id": 900 + numbers[0]},
            {"segmentation": [], "area": 0, "iscrowd": 0, "image_id": numbers[0], "bbox": [30, 5, 12.5, 0],
             "category_id": 1, "id": 950 + numbers[0]},
            {"segmentation": [], "area": 0, "iscrowd": 0, "image_id": numbers[0], "bbox": [30, 5, 12.5, 10],
             "category_id": 1, "id": 980 + numbers[0]},
        ]  # fmt: skip
        kinds = [
            {"supercategory": "person", "id": 1, "name": "person"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
        ]
        dump(
            folder / "annotations" / f"instances_{split}.json",
            {**INFO, "images": images, "annotations": boxes, "categories": kinds},
        )
    return folder


def karpathy(path: Path, dataset: str, entries: list[tuple[str, str, dict[str, Any]]]) -> Path:
    images = [
        {
            "sentids": [2 * i, 2 * i + 1], "imgid": i, "split": split, "filename": name, **more,
            "sentences": [
                {"tokens": ["a", "dog"], "raw": f"A dog {j}.", "imgid": i, "sentid": 2 * i + j} for j in range(2)
            ],
        }
        for i, (name, split, more) in enumerate(entries)
    ]  # fmt: skip
    return dump(path, {"images": images, "dataset": dataset})


TOKENS = (
    "1000092795.jpg#0\tTwo young guys with shaggy hair look at their hands .\n"
    "1000092795.jpg#1\tTwo young , White males are outside near many bushes .\n"
    "10002456.jpg#0\tSeveral men in hard hats are operating a giant pulley system .\n"
    "1000268201.jpg#0\tA child in a pink dress .\n"
)


def flickr(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results_20130124.token").write_text(TOKENS, encoding="utf-8")
    for number in (1000092795, 10002456):
        picture(folder / "flickr30k-images" / f"{number}.jpg")
    (folder / "train.txt").write_text("1000092795\n")
    (folder / "val.txt").write_text("10002456\n")
    (folder / "test.txt").write_text("1000268201\n")
    return folder


ANSWERS = ["net", "net", "net", "netting", "net", "net", "mesh", "net", "Net", "net"]


def vqa(folder: Path) -> Path:
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    for split, image, questions in (
        ("train2014", 458752, (458752000, 458752001)),
        ("val2014", 262148, (262148000,)),
        ("test2015", 262144, (262144000,)),
    ):
        picture(folder / split / f"COCO_{split}_{image:012d}.jpg")
        asked = [{"image_id": image, "question": f"What is this {q}?", "question_id": q} for q in questions]
        dump(
            folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
            {**head, "data_subtype": split, "questions": asked},
        )
        if split == "test2015":
            continue
        answered = [
            {
                "question_type": "what is this", "multiple_choice_answer": "net", "image_id": image,
                "answer_type": "other", "question_id": q,
                "answers": [
                    {"answer": text, "answer_confidence": "maybe", "answer_id": i + 1} for i, text in enumerate(ANSWERS)
                ],
            }
            for q in questions
        ]  # fmt: skip
        dump(folder / f"v2_mscoco_{split}_annotations.json", {**head, "data_subtype": split, "annotations": answered})
    return folder


def references() -> list[dict[str, Any]]:
    def reference(number: int, split: str, image: int, sentences: list[str]) -> dict[str, Any]:
        return {
            "sent_ids": [10 * number + i for i in range(len(sentences))],
            "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
            "ann_id": 1719310 + number, "ref_id": number, "image_id": image, "split": split, "category_id": 1,
            "sentences": [
                {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * number + i, "sent": text}
                for i, text in enumerate(sentences)
            ],
        }  # fmt: skip

    return [
        reference(0, "train", 581857, ["navy blue shirt", "woman back in blue"]),
        reference(1, "testA", 581857, ["café sign"]),
        reference(2, "testB", 9, ["left one"]),
        reference(7, "val", 9, ["no such box"]),
    ]


def instances() -> dict[str, Any]:
    boxes = [
        {"segmentation": [[0.0]], "area": 1.0, "iscrowd": 0, "image_id": image, "bbox": [4.0, 2.0, 20.0, 10.0],
         "category_id": 1, "id": 1719310 + number}
        for number, image in ((0, 581857), (1, 581857), (2, 9))
    ]  # fmt: skip
    kinds = [{"supercategory": "person", "id": 1, "name": "person"}]
    return {**INFO, "images": [coco_image(581857), coco_image(9)], "annotations": boxes, "categories": kinds}


def python_2_pickle(value: Any) -> bytes:
    """Protocol 0 as Python 2 wrote it: every text a quoted line of bytes."""

    def write(part: Any) -> bytes:
        if isinstance(part, dict):
            return b"(d" + b"".join(write(k) + write(v) + b"s" for k, v in part.items())
        if isinstance(part, list):
            return b"(l" + b"".join(write(item) + b"a" for item in part)
        if isinstance(part, int):
            return b"I%d\n" % part
        quoted = repr(part.encode())[2:-1]
        return b"S'" + quoted.encode() + b"'\n"

    return write(value) + b"."


def mm_imdb(folder: Path) -> Path:
    films = {
        "0068646": ("train", {"plot": ["Short.", "The aging patriarch."], "genres": ["Crime", "Drama"]}),
        "0111161": ("dev", {"plot": "Two imprisoned men.", "genres": ["Drama", "News"], "title": "T"}),
        "0071562": ("test", {"plot": [], "genres": ["Adult"]}),
    }
    split: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for key, (part, film) in films.items():
        split[part].append(key)
        dump(folder / "mmimdb" / "dataset" / f"{key}.json", film)
        if key != "0071562":
            picture(folder / "mmimdb" / "dataset" / f"{key}.jpeg", (20, 30))
    split["test"].append("0000001")
    dump(folder / "mmimdb" / "split.json", split)
    return folder


def hateful(folder: Path) -> Path:
    lines = {
        "train": [
            {"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their character"},
            {"id": "01236", "img": "img/01236.png", "label": 1, "text": "two\nlines"},
        ],
        "dev_seen": [{"id": 8291, "img": "img/08291.png", "label": 1, "text": "white people is this"}],
        "dev_unseen": [
            {"id": 8291, "img": "img/08291.png", "label": 1, "text": "white people is this"},
            {"id": 3333, "img": "../../secret.png", "label": 0, "text": "x"},
        ],
        "test_seen": [{"id": 16395, "img": "img/16395.png", "text": "handjobs sold seperately"}],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("42953", "01236", "08291", "16395"):
        picture(folder / "img" / f"{name}.png")
    picture(folder.parent.parent / "secret.png")
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"id": 5, "img": "img/0')  # the file was cut
    return folder


def roco(folder: Path) -> Path:
    for name in ("train", "validation", "test"):
        base = folder / "data" / name / "radiology"
        for number in (1, 2):
            picture(base / "images" / f"ROCO_{name}_{number}.jpg")
        (base / "captions.txt").write_text(
            f"ROCO_{name}_1\t Computed tomography\t of the chest.\nROCO_{name}_2\t An MRI.\n", encoding="utf-8"
        )
    with (folder / "data" / "train" / "radiology" / "captions.txt").open("ab") as file:
        file.write(b"ROCO_train_3\t broken \xff text\nROCO_train_4 no tab\n")
    return folder


def iu_xray(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    reports = ["uid,MeSH,Problems,image,indication,comparison,findings,impression"]
    views = ["uid,filename,projection"]
    for uid in range(1, 21):
        findings = "" if uid == 3 else '"The heart, normal.\nLungs clear."'
        impression = "" if uid in (3, 4) else "Normal chest."
        reports.append(f"{uid},normal,Opacity;Cardiomegaly,Xray,XXXX,None,{findings},{impression}")
        for view, side in ((1001, "Frontal"), (2001, "Lateral")):
            name = f"{uid}_IM-0001-{view}.dcm.png"
            views.append(f"{uid},{name},{side}")
            if uid != 5:
                picture(folder / "images" / "images_normalized" / name)
    views.append("99,99_IM.dcm.png,Frontal")
    (folder / "indiana_reports.csv").write_text("\n".join(reports) + "\n")
    (folder / "indiana_projections.csv").write_text("\n".join(views) + "\n")
    return folder


def b64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def tsv_line(name: str, boxes: np.ndarray, features: np.ndarray, size: tuple[int, int] = (40, 20)) -> str:
    return "\t".join([name, str(size[0]), str(size[1]), str(len(boxes)), b64(boxes), b64(features)]) + "\n"


def npz_bytes(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
