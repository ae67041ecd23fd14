"""The assets with labelled examples: classes, translations, questions, help pages.

The licence is that of the data; a package's own may differ. Debian's help pages change with its release:
these hashes are of LibreOffice 7.4 (Debian 12), any other is refused.
"""

from __future__ import annotations

from wafergpt.assets.asset import Asset, Member, Registry


def _help(name: str, language: str, folder: str, sha256: str, size_bytes: int, download_bytes: int) -> Asset:
    return Asset(
        name=f"help-{name}",
        summary=f"LibreOffice's help pages in {language}: 2,560 of them; their paragraphs carry ids",
        registry=Registry.DEBIAN,
        package=f"libreoffice-help-{name}",
        version="7.4.7",
        licence="MPL-2.0",
        download_bytes=download_bytes,
        members=(
            Member(
                path=f"usr/share/libreoffice/help/{folder}/text/**/*.html",
                sha256=sha256,
                size_bytes=size_bytes,
            ),
        ),
        is_corpus=False,
    )


_SQUAD = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts"

LABELLED = (
    Asset(
        name="vader-sentences",
        summary="23,700 sentences of reviews, editorials and tweets with mean human ratings from -4 to 4",
        registry=Registry.PYPI,
        package="vaderSentiment",
        version="0.5",
        licence="MIT",
        download_bytes=2_448_964,
        archive_sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        members=(
            Member(
                path="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
                sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
                size_bytes=2_338_514,
            ),
        ),
        is_corpus=False,
        needs_sdist=True,
    ),
    Asset(
        name="headlines",
        summary="28,614 newspaper headlines, half of them sarcastic (from a satirical paper)",
        registry=Registry.PYPI,
        package="evals",
        version="3.0.1.post1",
        licence="MIT",
        download_bytes=46_322_659,
        archive_sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        members=(
            Member(
                path="evals/registry/data/sarcasm/samples.jsonl",
                sha256="4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46",
                size_bytes=6_906_270,
            ),
        ),
        is_corpus=False,
    ),
    Asset(
        name="home-intents",
        summary="862 templates of English commands to a house, in 42 intents",
        registry=Registry.PYPI,
        package="home-assistant-intents",
        version="2026.10.27",
        licence="Apache-2.0",
        download_bytes=775_094,
        archive_sha256="256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
        members=(
            Member(
                path="home_assistant_intents/data/en.json",
                sha256="0b9d606a216b1712409a3d822a8edfb9ff4458e51e421792882ea24e0ce1d456",
                size_bytes=176_965,
            ),
        ),
        is_corpus=False,
    ),
    _help(
        "en-us",
        "English",
        "en-US",
        "f392056aa698535c94073622971989d5f1715d763063ff016b457f38df9511b4",
        23_417_538,
        1_753_504,
    ),
    _help(
        "fr",
        "French",
        "fr",
        "b90daea48504725bf50f31059de5b73446243422aeb627dc3ce041849eb236b0",
        24_421_716,
        3_237_008,
    ),
    _help(
        "zh-cn",
        "Simplified Chinese",
        "zh-CN",
        "d79f85245b5800e8d35bd36a9d721120160f2c4b76f389d04ac17815148a37c5",
        23_132_112,
        3_435_780,
    ),
    Asset(
        name="squad",
        summary="28,557 questions on passages: SQuAD 1.1's development set, SQuAD-Shifts' Wikipedia and news",
        registry=Registry.PYPI,
        package="bigbench",
        version="1.0.0",
        licence="SQuAD CC-BY-SA-4.0; SQuAD-Shifts CC-BY-4.0; package Apache-2.0",
        download_bytes=358_249_635,
        archive_sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        members=(
            Member(
                path=f"{_SQUAD}/new_wiki_v1.0.json",
                sha256="428104b87438d9059eb5df2883267cf9d30f6f4fcaed92e72107c8b913eaea40",
                size_bytes=5_930_869,
            ),
            Member(
                path=f"{_SQUAD}/nyt_v1.0.json",
                sha256="a770cdc1b460e3bd256a9f95aae021ed6502768b1713be777f3dd8740a4a1965",
                size_bytes=7_505_359,
            ),
            Member(
                path=f"{_SQUAD}/squaddev_v1.1.json",
                sha256="45089eff3cf52004b1dca6814cde5c57082fdb09872f18c79a5d944d45be523a",
                size_bytes=8_258_266,
            ),
        ),
        is_corpus=False,
        needs_sdist=True,
    ),
)
