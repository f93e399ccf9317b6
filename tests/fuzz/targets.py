"""All readers of bytes from outside, and those that read what is no outsider's."""

import targets_data
import targets_state

TARGETS = [*targets_data.TARGETS, *targets_state.TARGETS]
_INSTALLED, _OWN = "a file of an installed package", "bytes that this process or its worker made"
_ELSEWHERE = "tried against a server or a model in tests of its own"
OWN = {
    **dict.fromkeys(("bundled.build_clip", "micro_captioner.build_model", "micro_sam._fill_backbone"), _INSTALLED),
    **dict.fromkeys(
        ("cli_data.help_text", "maps._leaflet", "maps.inside", "maps.page_element", "maps.render"), _INSTALLED
    ),
    "app.voila_command": _INSTALLED,
    **dict.fromkeys(
        ("new_notebook.new_notebook", "origin._cpu_name", "origin.peak_memory_gb", "origin._modules_of"), _INSTALLED
    ),
    **dict.fromkeys(("cluster.answer", "workers.build", "workers.packed", "simulated_set.settings_of"), _OWN),
    **dict.fromkeys(("store.__init__", "store.quarantine", "sharding._write_shard"), _OWN),
    "crop_features.segment_features": "rows that the segment store has checked, and their length",
    **dict.fromkeys(("endpoint._request", "sam._fetch"), _ELSEWHERE),
    **dict.fromkeys(("pretrained.describe", "pretrained.read", "pretrained.read_model"), _ELSEWHERE),
    **dict.fromkeys(
        ("heat.tile_table", "answers._where_in"),
        "footprints and masks in an index that is whole; a broken footprint counts as none",
    ),
    "search_box._on_message": "messages of a page: test_search_box.py",
}
