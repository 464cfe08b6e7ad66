//! A lab's picture: charts of the library's own style and rows of small images, side by side.

use std::fmt::Write;

use super::{Doing, LabError};
use crate::generate::image::{Picture, encode_png, grid};
use crate::train::plot::{self, Frame, Series};
use crate::train::report::base64;

const PANEL: (u32, u32) = (460, 340);

/// One panel: lines, else dots with equal scales, else bars.
#[derive(Clone)]
pub struct Chart {
    frame: Frame,
    lines: Vec<Series>,
    dots: Vec<Series>,
    bars: (Vec<String>, Vec<f64>),
}

impl Chart {
    /// An empty panel with its axis names.
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self {
            frame: Frame::new(title, x, y).sized(PANEL.0, PANEL.1),
            lines: Vec::new(),
            dots: Vec::new(),
            bars: Default::default(),
        }
    }

    /// Adds a line through `points`.
    pub fn line(mut self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.lines.push(Series::new(name, points));
        self
    }

    /// Adds a cloud of dots.
    pub fn dots(mut self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.dots.push(Series::new(name, points));
        self
    }

    /// Adds one named bar.
    pub fn bar(mut self, name: &str, height: f64) -> Self {
        self.bars.0.push(name.into());
        self.bars.1.push(height);
        self
    }

    /// Draws y on a logarithmic axis.
    pub fn log_y(mut self) -> Self {
        self.frame = self.frame.log_y();
        self
    }

    /// The panel as an SVG document.
    pub fn svg(&self) -> String {
        match (self.lines.is_empty(), self.dots.is_empty()) {
            (false, _) => plot::lines(&self.frame, &self.lines),
            (true, false) => plot::scatter(&self.frame, &self.dots),
            (true, true) => {
                let (names, heights) = self.bars.clone();
                plot::bars(&self.frame, &names, &[(String::new(), heights)])
            }
        }
    }
}

/// A matrix as a panel of shades, `rows` from the top.
pub fn heat(title: &str, (rows, columns): (&[&str], &[&str]), values: &[Vec<f64>]) -> String {
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    let frame = Frame::new(title, "", "").sized(PANEL.0, PANEL.1);
    plot::heat(&frame, &names(rows), &names(columns), values)
}

/// Charts side by side in one SVG document.
pub fn panels(charts: &[Chart]) -> String {
    beside(&charts.iter().map(Chart::svg).collect::<Vec<_>>())
}

/// Panels, each an SVG document, side by side in one document.
pub fn beside(svgs: &[String]) -> String {
    let (mut all, height) = (0, PANEL.1);
    let mut inner = String::new();
    for svg in svgs {
        inner += &svg.replacen("<svg ", &format!("<svg x=\"{all}\" "), 1);
        all += width(svg);
    }
    format!(
        "<svg width=\"{all}\" height=\"{height}\" viewBox=\"0 0 {all} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n{inner}</svg>\n"
    )
}

/// How wide a panel says it is.
fn width(svg: &str) -> u32 {
    let said = svg
        .split_once(" width=\"")
        .and_then(|(_, rest)| rest.split_once('"'));
    said.and_then(|(width, _)| width.parse().ok())
        .unwrap_or(PANEL.0)
}

/// Named groups of rows of small pictures as a panel.
///
/// # Errors
/// [`LabError::Step`] when the pictures of a group differ in shape.
pub fn strips(groups: &[(&str, Vec<Vec<Picture>>)]) -> Result<String, LabError> {
    let mut body = String::new();
    let mut top = 12;
    for (name, rows) in groups {
        let columns = rows.first().map_or(1, Vec::len);
        let pictures: Vec<Picture> = rows.iter().flatten().cloned().collect();
        let sheet = grid(&pictures, columns, 2, 96).doing("laying out pictures")?;
        let png = encode_png(&sheet, &[]).doing("drawing pictures")?;
        let width = PANEL.0 as usize - 20;
        let height = width * sheet.height() / sheet.width();
        let _ = write!(
            body,
            "<text x=\"10\" y=\"{}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" \
             fill=\"currentColor\">{name}</text>\n<image x=\"10\" y=\"{}\" width=\"{width}\" \
             height=\"{height}\" href=\"data:image/png;base64,{}\"/>\n",
            top + 12,
            top + 20,
            base64(&png),
        );
        top += height + 36;
    }
    let (width, height) = PANEL;
    // More rows than the panel has room for are drawn smaller.
    let seen = top.max(height as usize);
    Ok(format!(
        "<svg class=\"maquette-plot\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {seen}\" xmlns=\"http://www.w3.org/2000/svg\">\n{body}</svg>\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_stand_side_by_side() {
        let lines = Chart::new("a", "x", "y")
            .line("l", [(1.0, 1.0), (2.0, 100.0)])
            .log_y();
        let bars = Chart::new("b", "x", "y").bar("one", 1.0).bar("two", 2.0);
        let dots = Chart::new("c", "x", "y").dots("d", [(0.0, 0.0)]);
        let svg = panels(&[lines, bars, dots]);
        assert!(svg.starts_with("<svg width=\"1380\"") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("<svg x=\"920\"") && svg.contains("two"));
    }

    #[test]
    fn pictures_are_embedded() {
        let picture = Picture::new(2, 1, 1, vec![0, 255]).unwrap();
        let svg = strips(&[("pair", vec![vec![picture.clone(), picture]])]).unwrap();
        assert!(svg.contains("data:image/png;base64,iVBOR") && svg.contains("pair"));
    }
}
