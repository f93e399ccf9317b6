"""Step through an adaptation: `TrainingStepper` with what a curriculum takes, who tells the domains apart, two clouds.

stepper = AdaptationStepper(adapter)
stepper                       # buttons over adapter.step(), with live views
stepper.run(20)               # the same from code; this is what papermill runs
stepper.figure()              # the curves so far; also curriculum_figure(), clouds_figure()
adapter.fit(on_step=stepper.probe.observe)  # to the end, looked at all the way
"""

from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from ucore.adaptation_figures import clouds_html, plot_adaptation, plot_clouds, told_html
from ucore.curriculum_figures import curriculum_html, plot_curriculum
from ucore.picture import Picture
from ucore.widgets import TrainingStepper

if TYPE_CHECKING:
    from ucore.adapt import Adapter
    from ucore.adapt_probes import DomainProbe
    from ucore.probes import QueryProbe

GALLERY = "the target's validation block"


class AdaptationStepper(ipw.VBox):
    """Step, Run, Pause and Reset over `adapter.step()`, with views of both domains.

    adapter: as of `TrainingStepper`'s trainer, with `train` (the source) and `config`. run_steps, query: as there.
    probe: what looks at the domains after every step; by default a `DomainProbe`.
    """

    def __init__(
        self,
        adapter: "Adapter | Any",
        run_steps: int | None = None,
        probe: "DomainProbe | Any | None" = None,
        query: "QueryProbe | Any | None" = None,
    ) -> None:
        if probe is None:
            from ucore.adapt_probes import DomainProbe  # here, since importing torch takes seconds

            probe = DomainProbe(adapter)
        self.adapter, self.probe = adapter, probe
        self.domains = DomainsView(adapter, probe)
        self.training = TrainingStepper(adapter, run_steps, query=query, views=[self.domains], gallery=GALLERY)
        self.run, self.pause, self.reset = self.training.run, self.training.pause, self.training.reset
        super().__init__([self.training])

    def figure(self, title: str = "") -> Picture:
        """Loss and its parts, who tells the domains apart, the criterion and the recalls: the static twin."""
        return plot_adaptation(self.adapter.history, self.probe.told, None, GALLERY, title)

    def curriculum_figure(self, title: str = "") -> Picture:
        """What the first pass and the last took of the source, as a figure of its own."""
        probe = self.probe
        return plot_curriculum(self.adapter.train, probe.likeness, probe.cycles, self.adapter.config.curriculum, title)

    def clouds_figure(self, title: str = "") -> Picture:
        """Both domains' features when the probe began and at the step that it saw last."""
        moments = [(f"after step {clouds.step:,}", clouds) for clouds in (self.probe.first, self.probe.clouds())]
        return plot_clouds(moments, title)


class DomainsView:
    """The three views of a `DomainProbe` as one `widgets.View`."""

    def __init__(self, adapter: "Adapter | Any", probe: "DomainProbe | Any") -> None:
        self.adapter, self.probe = adapter, probe
        self.told, self.curriculum, self.clouds = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.widget = ipw.VBox([self.told, self.curriculum, self.clouds])

    def observe(self) -> None:
        """Give the probe the step that was just made."""
        self.probe.observe()

    def draw(self) -> None:
        """Draw all three anew from what the probe has seen."""
        adapter, probe = self.adapter, self.probe
        self.told.value = told_html(probe.told, adapter.history)
        self.curriculum.value = curriculum_html(adapter.train, probe.likeness, probe.cycles, adapter.config.curriculum)
        self.clouds.value = clouds_html(probe.clouds())

    def restart(self) -> None:
        """Let the probe forget what it has seen."""
        self.probe.restart()
