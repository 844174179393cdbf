"""Static pages: cards, plots, pictures of cutouts, templates."""
