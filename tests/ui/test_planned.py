"""The plan beside the form: of what is chosen, whoever was answered last; a visitor's is of the defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from qlora_demo.compose import build_services
from qlora_demo.services import Services
from tests.calls import Client, opened, values

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"


def planning(page: gr.Blocks) -> list[int]:
    """What draws the plan."""
    return [number for number, one in page.fns.items() if "plan" in [part.elem_id for part in one.outputs]]


def test_opening_and_choosing_are_one_listener_so_the_last_choice_is_planned_last(services: Services) -> None:
    page = opened(services)
    [number] = planning(page)
    handler = page.fns[number]
    assert {"load", "change"} == {event for _, event in handler.targets}
    assert handler.trigger_mode == "always_last"
    page.close()


@pytest.mark.parametrize(
    ("role", "planned"), [("visitor", "smollm2-135m-instruct is not fetched"), ("operator", "is no folder here")]
)
def test_a_visitor_s_plan_is_of_the_defaults_whatever_is_sent(services: Services, role: str, planned: str) -> None:
    page = opened(build_services(replace(services.settings, password=PASSWORD)))
    [number] = planning(page)
    with Client(str(page.local_url)) as client:
        if role == "operator":
            client.sign_in(PASSWORD)
        told: Any = client.call(number, values(page.fns[number], TrainConfig_model="./no-such-folder"))
    assert planned in told["output"]["data"][0]
    assert ("no-such-folder" in str(told)) == (role == "operator")
    page.close()
