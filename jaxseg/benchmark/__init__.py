"""What the operators and models cost: `measure` for any function, and the benchmark behind `jaxseg benchmark upsampling`."""

from jaxseg.benchmark.measure import Measurement, Timing, alternate, measure
from jaxseg.benchmark.rates import Rates, machine_rates

__all__ = ["Measurement", "Rates", "Timing", "alternate", "machine_rates", "measure"]
