//! SVG plots in one style.
