"""The page of demo, in Gradio 6."""

import threading
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  (the extra dev has no Gradio)
import numpy as np
from gradio import themes  # pyright: ignore[reportMissingImports]

from resnet_jax.cli.demo_answer import Answer, Explainer, enlarged, of_upload
from resnet_jax.cli.demo_examples import Example
from resnet_jax.errors import ConfigError

TOP = 5  # classes with a bar
CANVAS = 420  # pixels
SANS, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the reader's system: nothing is fetched
PICTURES = (  # id, caption and text for screen readers
    ("seen", "As the network sees it:", "The picture as the network sees it"),
    (
        "overlay",
        "The Grad-CAM map over it:",
        "The same picture: bright colours where the network finds the class",
    ),
)
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
#picture img, #seen img, #overlay img, #examples img { image-rendering: pixelated; }
#examples .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
#examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)) !important; }
#examples .caption-label { position: static; max-width: none; border: 0; text-align: center; }
#examples .thumbnail-item { height: auto; aspect-ratio: auto; }
"""


def build(explainer: Explainer, examples: list[Example]) -> gr.Blocks:
    """The page: a picture or a drawing on the left, the answer on the right, examples below."""
    with gr.Blocks(title=f"resnet_jax: {explainer.name}", analytics_enabled=False) as page:
        gr.Markdown(about(explainer))
        with gr.Row():
            with gr.Column():
                tabs, picture, sketch, button = inputs(explainer)
            with gr.Column():
                answer = outputs(explainer)
        if examples:
            gr.Markdown("Examples from the test set:")
        gallery = gallery_of(examples) if examples else None

    def of_file(file: dict[str, Any] | None) -> list[Any]:
        return shown(of_upload(explainer, file["path"]) if file else Answer(None, None, None, ""))

    def of_sketch(drawn: dict[str, Any] | None) -> list[Any]:
        if drawn is None or drawn["composite"] is None:
            return shown(Answer(None, None, None, "The drawing is empty."))
        return shown(explainer.of_pixels(drawn["composite"][..., None]))

    def of_example(event: gr.SelectData) -> list[Any]:
        pixels, name = examples[event.index]
        result = explainer.of_pixels(pixels)
        return [
            gr.Tabs(selected="picture"),
            enlarged(pixels),
            *shown(result._replace(note=f"Its class is {name}. {result.note}")),
        ]

    with page:
        # preprocess=False: Gradio would open the file itself, and fail for one that is not a picture
        hidden: Any = {"api_visibility": "private", "show_progress": "minimal"}
        picture.upload(of_file, picture, answer, preprocess=False, **hidden)
        picture.clear(lambda: of_file(None), None, answer, **hidden)
        button.click(of_sketch, sketch, answer, **hidden)
        if gallery is not None:
            gallery.select(of_example, None, [tabs, picture, *answer], **hidden)
    return page


def about(explainer: Explainer) -> str:
    """The head of the page, in Markdown."""
    count = len(explainer.predictor.class_names)
    return f"# Try a trained network\n**{explainer.name}** knows {count} classes. Give it a picture."


def inputs(explainer: Explainer) -> tuple[gr.Tabs, gr.Image, gr.Sketchpad, gr.Button]:
    """The two ways to give a picture."""
    with gr.Tabs() as tabs:
        with gr.Tab("Picture", id="picture"):
            plain: Any = {"sources": ["upload", "clipboard"], "buttons": [], "format": "png"}
            picture = gr.Image(show_label=False, height=CANVAS, elem_id="picture", **plain)
        with gr.Tab("Draw", id="draw"):
            hint = " Fill the shape: the training images show filled shapes." if explainer.light_on_dark else ""
            gr.Markdown(f"Choose the brush and draw.{hint}")
            sketch = gr.Sketchpad(
                show_label=False,
                image_mode="L",
                format="png",
                canvas_size=(CANVAS, CANVAS),
                fixed_canvas=True,
                height=CANVAS + 80,
                layers=False,
                transforms=(),
                buttons=[],
                brush=gr.Brush(default_size=24, colors=["#000000", "#808080", "#c0c0c0"], color_mode="fixed"),
                elem_id="sketch",
            )
            button = gr.Button("Classify the drawing", variant="primary")
    return tabs, picture, sketch, button


def outputs(explainer: Explainer) -> list[gr.Label | gr.Markdown | gr.Image]:
    """The bars, the note and the two pictures: what `shown` fills."""
    top = min(TOP, len(explainer.predictor.class_names))
    label = gr.Label(show_label=False, num_top_classes=top, elem_id="classes")
    note = gr.Markdown(elem_id="note")
    images = []
    with gr.Row():
        for name, caption, text in PICTURES:
            with gr.Column(min_width=120):
                gr.Markdown(caption)
                plain: Any = {"interactive": False, "buttons": [], "format": "png", "show_label": False}
                images.append(gr.Image(alt_text=text, elem_id=name, **plain))
    return [label, note, *images]


def gallery_of(examples: list[Example]) -> gr.Gallery:
    """The examples, with the names of their classes."""
    return gr.Gallery(
        [(example.pixels.squeeze(), example.name) for example in examples],
        show_label=False,
        columns=len(examples),
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        format="png",
        elem_id="examples",
    )


def shown(answer: Answer) -> list[Any]:
    """The values of the outputs."""
    return [answer.probabilities, answer.note, *(None if x is None else np.asarray(x) for x in answer[1:3])]


def serve(page: gr.Blocks, host: str, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM. ConfigError if another process has taken the port."""
    fonts: Any = [[themes.Font(name) for name in names] for names in (SANS, MONO)]
    try:
        page.launch(
            share=False,
            server_name=host,
            server_port=port,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size="100mb",
            theme=themes.Default(font=fonts[0], font_mono=fonts[1]),
            css=CSS,
        )
    except OSError as error:
        raise ConfigError(f"--port {port}: the page cannot be served there ({error}); try another one") from None
    try:
        print(f"the page is at {page.local_url} (Ctrl-C ends it)")
        if browser:
            import webbrowser

            webbrowser.open(str(page.local_url))
        threading.Event().wait()
    except KeyboardInterrupt:
        print("the page is closed")
    finally:
        page.close(verbose=False)
