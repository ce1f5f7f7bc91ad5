"""summary --json: the figures of the table."""

import json

from resnet_jax import cli, create_model, layer_summary, multiply_adds


def test_the_json_holds_the_table(capsys):
    assert cli.command(["summary", "resnet20", "--image-size", "32", "--json"], "resnet-jax") == 0
    found = json.loads(capsys.readouterr().out)
    model, shape = create_model("resnet20", 1000), (1, 32, 32, 3)
    rows = layer_summary(model, shape)
    assert [(row["layer"], tuple(row["output_shape"]), row["parameters"]) for row in found["layers"]] == list(rows)
    assert [row["class"] for row in found["layers"]] == ["Stem", "Stage", "Stage", "Stage", "Dense"]
    assert (found["arch"], found["input_shape"]) == ("resnet20", list(shape))
    assert (found["parameters"], found["multiply_adds"]) == (rows.parameters, multiply_adds(model, shape))
