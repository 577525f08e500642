"""MkDocs calls this file: it writes the tables of recipe keys into reference/recipe.md."""

from nucleus_unet.recipe import Recipe, key_descriptions, load_recipe, recipe_names

PLACE = "<!-- every key -->"


def recipe_tables() -> str:
    """A table for each part of the recipe: key, meaning, default, recipes with another value."""
    default = Recipe(name="").flat()
    recipes = {name: load_recipe(name).flat() for name in recipe_names()}
    lines: list[str] = []
    last = ""
    for key, meaning in key_descriptions().items():
        if (part := key.partition(".")[0]) != last:
            lines += [
                "",
                f"## {part}",
                "",
                "| key | meaning | default | recipes |",
                "|---|---|---|---|",
            ]
            last = part
        others = [f"{n}: `{r[key]}`" for n, r in recipes.items() if r[key] != default[key]]
        cells = (f"`{key}`", meaning.replace("|", r"\|"), f"`{default[key]}`", "<br>".join(others))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the tables, in the page that has a place for them."""
    return markdown.replace(PLACE, recipe_tables()) if PLACE in markdown else markdown
