"""Registration of a serial section: where every point of a slide lies in another slide of the same tissue."""
