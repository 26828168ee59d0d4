"""Write the page that `dvc plots show` fills: with the plotting libraries inside, where DVC's own page loads them."""

import sys
from pathlib import Path

import vl_convert

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>AzNeoBERT: plots</title>
<script>{libraries}</script>
<style>body {{ font-family: sans-serif; margin: 2em; }} img {{ max-width: 100%; }}</style>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def main() -> None:
    """Write the page to the path given."""
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    libraries = vl_convert.javascript_bundle(vl_version="v5.20").replace("</script", "<\\/script")
    target.write_text(_PAGE.format(libraries=libraries), encoding="utf-8")


if __name__ == "__main__":
    main()
