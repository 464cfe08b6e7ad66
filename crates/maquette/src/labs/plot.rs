//! Charts as SVG text: lines, dots and bars, one panel or several side by side.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::LabError;

const PALETTE: [RGBColor; 8] = [
    RGBColor(38, 70, 160),
    RGBColor(214, 90, 49),
    RGBColor(42, 140, 90),
    RGBColor(150, 60, 150),
    RGBColor(200, 150, 20),
    RGBColor(30, 150, 170),
    RGBColor(120, 120, 120),
    RGBColor(190, 40, 90),
];
const PANEL: (u32, u32) = (460, 340);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

enum Mark {
    Line(Vec<(f64, f64)>),
    Dots(Vec<(f64, f64)>),
}

/// One panel: a title, two axes and what is drawn between them.
pub struct Chart {
    title: String,
    axes: (String, String),
    marks: Vec<(String, Mark)>,
    bars: Vec<(String, f64)>,
    log_x: bool,
    log_y: bool,
}

impl Chart {
    /// An empty panel with its axis labels.
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self {
            title: title.into(),
            axes: (x.into(), y.into()),
            marks: Vec::new(),
            bars: Vec::new(),
            log_x: false,
            log_y: false,
        }
    }

    /// Adds a line through `points`.
    pub fn line(mut self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.marks
            .push((name.into(), Mark::Line(points.into_iter().collect())));
        self
    }

    /// Adds a cloud of dots.
    pub fn dots(mut self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.marks
            .push((name.into(), Mark::Dots(points.into_iter().collect())));
        self
    }

    /// Adds one named bar; a panel holds either bars or lines and dots.
    pub fn bar(mut self, name: &str, height: f64) -> Self {
        self.bars.push((name.into(), height));
        self
    }

    /// Draws x on a logarithmic axis.
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// Draws y on a logarithmic axis.
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// The panel alone as an SVG document.
    ///
    /// # Errors
    /// [`LabError::Plot`] when drawing fails.
    pub fn svg(self) -> Result<String, LabError> {
        panels(&[self])
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let scale = |v: f64, log: bool| if log { v.max(1e-12).log10() } else { v };
        (scale(x, self.log_x), scale(y, self.log_y))
    }

    /// All points in axis units, for the ranges. Bars stand at 0, 1, 2, ... from 0 upwards.
    fn extent(&self) -> Vec<(f64, f64)> {
        let bars = self.bars.iter().enumerate().flat_map(|(i, (_, h))| {
            let base = if self.log_y { *h } else { 0.0 };
            [(i as f64 - 0.6, base), (i as f64 + 0.6, *h)]
        });
        let marks = self.marks.iter().flat_map(|(_, mark)| match mark {
            Mark::Line(points) | Mark::Dots(points) => points.iter().copied(),
        });
        let placed = bars.chain(marks).map(|p| self.place(p));
        placed
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect()
    }

    fn draw(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let extent = self.extent();
        let x = range(extent.iter().map(|p| p.0), 0.03);
        let y = range(extent.iter().map(|p| p.1), 0.06);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(38)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y.clone())?;
        let names: Vec<&str> = self.bars.iter().map(|(name, _)| name.as_str()).collect();
        let x_text = |v: &f64| match names.is_empty() {
            true => tick(*v, self.log_x),
            // Bars stand on whole numbers; ticks between them stay blank.
            false if (v - v.round()).abs() > 1e-6 => String::new(),
            false => names.get(v.round() as usize).unwrap_or(&"").to_string(),
        };
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.08))
            .x_desc(&self.axes.0)
            .y_desc(&self.axes.1)
            .x_labels(if names.is_empty() {
                7
            } else {
                2 * names.len() + 1
            })
            .y_labels(7)
            .x_label_formatter(&x_text)
            .y_label_formatter(&|v| tick(*v, self.log_y))
            .draw()?;
        for (i, (_, height)) in self.bars.iter().enumerate() {
            let (left, floor) = (i as f64 - 0.35, if self.log_y { y.start } else { 0.0 });
            let top = self.place((0.0, *height)).1;
            let colour = PALETTE[i % PALETTE.len()].mix(0.85).filled();
            chart.draw_series([Rectangle::new([(left, floor), (left + 0.7, top)], colour)])?;
        }
        for (i, (name, mark)) in self.marks.iter().enumerate() {
            let colour = PALETTE[i % PALETTE.len()];
            let series = match mark {
                Mark::Line(points) => chart.draw_series(LineSeries::new(
                    points.iter().map(|p| self.place(*p)),
                    colour.stroke_width(2),
                ))?,
                Mark::Dots(points) => chart.draw_series(
                    points
                        .iter()
                        .map(|p| Circle::new(self.place(*p), 2, colour.mix(0.6).filled())),
                )?,
            };
            if !name.is_empty() {
                series.label(name).legend(move |(x, y)| {
                    Rectangle::new([(x, y - 3), (x + 12, y + 3)], colour.filled())
                });
            }
        }
        if self.marks.iter().any(|(name, _)| !name.is_empty()) {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .label_font(("sans-serif", 11))
                .draw()?;
        }
        Ok(())
    }
}

/// Panels side by side in one SVG document.
///
/// # Errors
/// [`LabError::Plot`] when drawing fails.
pub fn panels(charts: &[Chart]) -> Result<String, LabError> {
    let mut svg = String::new();
    let size = (PANEL.0 * charts.len() as u32, PANEL.1);
    let draw = |svg: &mut String| -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, chart) in root.split_evenly((1, charts.len())).iter().zip(charts) {
            chart.draw(area)?;
        }
        root.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|e| LabError::Plot(e.to_string()))?;
    Ok(svg)
}

/// The range of `values` with a margin; a single value gets a range around it.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
        (l.min(v), h.max(v))
    });
    match high - low {
        width if !width.is_finite() => 0.0..1.0,
        0.0 => low - 0.5..high + 0.5,
        width => low - margin * width..high + margin * width,
    }
}

fn tick(value: f64, log: bool) -> String {
    let value = if log { 10f64.powf(value) } else { value };
    // Ticks near zero carry rounding noise; three digits hide it.
    let rounded = format!("{value:.3e}").parse().unwrap_or(value);
    if f64::abs(rounded) < 1e-9 && !log {
        "0".into()
    } else {
        super::claim::number(rounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_lines_bars_and_empty_panels() {
        let lines = Chart::new("a", "x", "y")
            .line("l", [(1.0, 1.0), (2.0, 100.0)])
            .log_y();
        let bars = Chart::new("b", "x", "y").bar("one", 1.0).bar("two", 2.0);
        let empty = Chart::new("c", "x", "y");
        let svg = panels(&[lines, bars, empty]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("two"));
    }
}
