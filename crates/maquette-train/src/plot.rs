//! SVG plots in one style, for reports and handbook pages.
//!
//! Text, axes and grid take the reader's own text colour and the background stays clear, so one
//! picture serves light and dark pages; the series colours are readable on both (Okabe and Ito's
//! palette, safe for colour-blind readers).

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Okabe and Ito, in the order of greatest contrast on white and on black.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(148, 130, 40),
];
/// Replaced by the reader's text colour when the picture is done.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_HEX: &str = "#010203";
const FONT: &str = "system-ui, sans-serif";
const MARGIN: u32 = 12;
const X_LABELS: u32 = 42;
const Y_LABELS: u32 = 64;
/// Height of a title line.
const CAPTION: u32 = 24;

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend; an empty name has no entry.
    pub name: String,
    /// `(x, y)`; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// Named points.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points: points.into_iter().collect(),
        }
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.points
            .iter()
            .copied()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
    }
}

/// Title, axis names and size of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Above the plot; may be empty.
    pub title: String,
    /// Below the horizontal axis.
    pub x: String,
    /// Beside the vertical axis.
    pub y: String,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// A logarithmic vertical axis (positive values only).
    pub log_y: bool,
}

impl Frame {
    /// A 640 by 360 frame with linear axes.
    pub fn new(title: impl Into<String>, x: impl Into<String>, y: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            x: x.into(),
            y: y.into(),
            size: (640, 360),
            log_y: false,
        }
    }

    /// Another size in pixels.
    pub fn sized(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    /// A logarithmic vertical axis.
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Lines through the points of each series.
pub fn lines(frame: &Frame, series: &[Series]) -> String {
    draw(frame, |canvas| curves(canvas, frame, series, Mark::Line))
}

/// The points of each series, with equal scales on both axes (both linear).
pub fn scatter(frame: &Frame, series: &[Series]) -> String {
    draw(frame, |canvas| curves(canvas, frame, series, Mark::Dot))
}

/// One bar per label; with several series, side by side.
pub fn bars(frame: &Frame, labels: &[String], series: &[(String, Vec<f64>)]) -> String {
    draw(frame, |canvas| {
        let values = || series.iter().flat_map(|(_, values)| values.iter().copied());
        let (low, high) = padded(values().chain([0.0]));
        let low = if values().any(|value| value < 0.0) {
            low
        } else {
            0.0
        };
        let name = |x: &f64| match x.fract().abs() < 1e-6 {
            true => labels.get(x.round() as usize).cloned().unwrap_or_default(),
            false => String::new(),
        };
        let x_range = -0.5..labels.len().max(1) as f64 - 0.5;
        let mut chart = builder(canvas, frame).build_cartesian_2d(x_range, low..high)?;
        let slot =
            frame.size.0.saturating_sub(Y_LABELS + 3 * MARGIN) as usize / labels.len().max(1);
        let longest = labels.iter().map(|label| label.chars().count()).max();
        // Names that would run into each other are set smaller; a figure is about half as wide as high.
        let size = if longest.unwrap_or(0) * 13 / 2 > slot {
            10
        } else {
            12
        };
        mesh(&mut chart, frame, &name, (labels.len() + 1, size))?;
        let width = 0.8 / series.len().max(1) as f64;
        for (at, (name, values)) in series.iter().enumerate() {
            let colour = PALETTE[at % PALETTE.len()];
            let bars = values
                .iter()
                .enumerate()
                .filter(|(_, value)| value.is_finite())
                .map(|(i, value)| {
                    let left = i as f64 - 0.4 + at as f64 * width;
                    Rectangle::new(
                        [(left, 0.0), (left + width * 0.92, *value)],
                        colour.filled(),
                    )
                });
            legend(chart.draw_series(bars)?, name, colour);
        }
        let tops = series
            .iter()
            .flat_map(|(_, values)| values.iter().enumerate());
        let tops: Vec<_> = tops
            .filter(|(_, value)| value.is_finite())
            .map(|(i, value)| chart.backend_coord(&(i as f64, *value)))
            .collect();
        show_legend(
            &mut chart,
            series.iter().map(|(name, _)| name.as_str()),
            &tops,
        )
    })
}

/// A matrix of values as shades, row 0 at the top; `rows` and `columns` name its edges. A frame too narrow
/// for the names is widened.
pub fn heat(frame: &Frame, rows: &[String], columns: &[String], values: &[Vec<f64>]) -> String {
    let names = room(rows);
    let cells = columns.len() as u32 * (wide(columns) + MARGIN / 2);
    let (width, height) = frame.size;
    let frame = &(frame.clone()).sized(width.max(names + cells + 3 * MARGIN), height);
    draw(frame, |canvas| {
        let (height, width) = (values.len().max(1) as f64, columns.len().max(1) as f64);
        let finite = || {
            values
                .iter()
                .flatten()
                .copied()
                .filter(|value| value.is_finite())
        };
        let (low, high) = (
            finite().fold(f64::INFINITY, f64::min),
            finite().fold(f64::NEG_INFINITY, f64::max),
        );
        let at_centre = |v: &f64| (v.fract().abs() < 1e-6).then(|| v.round() as usize);
        let row = |y: &f64| {
            at_centre(y)
                .and_then(|i| rows.get(i).cloned())
                .unwrap_or_default()
        };
        let column = |x: &f64| {
            at_centre(x)
                .and_then(|i| columns.get(i).cloned())
                .unwrap_or_default()
        };
        let mut chart = builder(canvas, frame)
            .y_label_area_size(names)
            .build_cartesian_2d(-0.5..width - 0.5, height - 0.5..-0.5)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_mesh()
            .axis_style(INK.mix(0.5))
            .label_style(ink(12))
            .axis_desc_style(ink(13))
            .x_labels(columns.len() + 1)
            .y_labels(rows.len() + 1)
            .x_label_formatter(&column)
            .y_label_formatter(&row)
            .x_desc(&frame.x)
            .y_desc(&frame.y)
            .draw()?;
        // Place, value, and how dark: from 0 at the lowest to 1 at the highest.
        let cells = || {
            values.iter().enumerate().flat_map(|(i, line)| {
                let finite = line
                    .iter()
                    .enumerate()
                    .filter(|(_, value)| value.is_finite());
                finite.map(move |(j, &value)| {
                    let share = if high > low {
                        (value - low) / (high - low)
                    } else {
                        1.0
                    };
                    ((j as f64, i as f64), value, share)
                })
            })
        };
        chart.draw_series(cells().map(|((x, y), _, share)| {
            Rectangle::new(
                [(x - 0.48, y - 0.48), (x + 0.48, y + 0.48)],
                PALETTE[0].mix(0.04 + 0.96 * share).filled(),
            )
        }))?;
        let centred = Pos::new(HPos::Center, VPos::Center);
        chart.draw_series(cells().map(|(place, value, share)| {
            let colour = if share > 0.5 { WHITE } else { INK };
            let style = (FONT, 11).into_font().color(&colour).pos(centred);
            Text::new(short(value), place, style)
        }))?;
        Ok(())
    })
}

/// What the longest of some names takes left of an axis.
fn room(names: &[String]) -> u32 {
    Y_LABELS.max(wide(names) + 8)
}

/// How wide the longest of some names is, about.
fn wide(names: &[String]) -> u32 {
    let letters = names.iter().map(|name| name.chars().count()).max();
    11 * letters.unwrap_or(0) as u32 / 2
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Line,
    Dot,
}

fn curves(canvas: &Canvas<'_>, frame: &Frame, series: &[Series], mark: Mark) -> Drawn {
    let positive = |point: &(f64, f64)| !frame.log_y || point.1 > 0.0;
    let points = || series.iter().flat_map(Series::finite).filter(positive);
    let across = span(points().map(|point| point.0));
    if frame.log_y {
        let (low, high) = span(points().map(|point| point.1));
        let range = (low / 1.2..high * 1.2).log_scale();
        let chart = builder(canvas, frame).build_cartesian_2d(across.0..across.1, range)?;
        return marks(chart, frame, series, mark);
    }
    let up = padded(points().map(|point| point.1));
    let (across, up) = match mark {
        Mark::Line => (across, up),
        Mark::Dot => equal_scales(frame, padded(points().map(|point| point.0)), up),
    };
    let chart = builder(canvas, frame).build_cartesian_2d(across.0..across.1, up.0..up.1)?;
    marks(chart, frame, series, mark)
}

/// Widens one of two ranges so that a unit is as long across as it is up.
fn equal_scales(frame: &Frame, across: (f64, f64), up: (f64, f64)) -> ((f64, f64), (f64, f64)) {
    let caption = if frame.title.is_empty() { 0 } else { CAPTION };
    let width = frame.size.0.saturating_sub(Y_LABELS + 3 * MARGIN).max(1);
    let height = frame
        .size
        .1
        .saturating_sub(X_LABELS + 2 * MARGIN + caption)
        .max(1);
    let unit = ((across.1 - across.0) / f64::from(width)).max((up.1 - up.0) / f64::from(height));
    let widen = |(low, high): (f64, f64), pixels: u32| {
        let (centre, half) = ((low + high) / 2.0, unit * f64::from(pixels) / 2.0);
        (centre - half, centre + half)
    };
    (widen(across, width), widen(up, height))
}

type Chart<'a, 'b, Y> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>;

/// Whether a line of a logarithmic axis goes without its number: all but 1, 2 and 5 times a power of
/// ten, whose numbers would run into each other.
fn crowded(y: f64) -> bool {
    let leading = y / 10f64.powf(y.log10().floor());
    ![1.0, 2.0, 5.0, 10.0]
        .iter()
        .any(|shown| (leading / shown - 1.0).abs() < 1e-6)
}

fn marks<'a, 'b: 'a, Y>(
    mut chart: Chart<'a, 'b, Y>,
    frame: &Frame,
    series: &[Series],
    mark: Mark,
) -> Drawn
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64> + 'static,
{
    mesh(&mut chart, frame, &|x| number(*x), (8, 12))?;
    let few = series.iter().map(|one| one.points.len()).sum::<usize>() <= 100;
    let radius = if few { 4 } else { 2 };
    for (at, one) in series.iter().enumerate() {
        let colour = PALETTE[at % PALETTE.len()];
        let points = one.finite().filter(|point| !frame.log_y || point.1 > 0.0);
        let drawn = match mark {
            Mark::Line => chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?,
            Mark::Dot => chart.draw_series(
                points.map(|point| Circle::new(point, radius, colour.mix(0.6).filled())),
            )?,
        };
        legend(drawn, &one.name, colour);
    }
    let points = series.iter().flat_map(Series::finite);
    let points: Vec<_> = points
        .filter(|point| !frame.log_y || point.1 > 0.0)
        .map(|point| chart.backend_coord(&point))
        .collect();
    show_legend(
        &mut chart,
        series.iter().map(|one| one.name.as_str()),
        &points,
    )
}

fn builder<'a, 'b>(canvas: &'a Canvas<'b>, frame: &Frame) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(canvas);
    builder
        .margin(MARGIN)
        .margin_right(2 * MARGIN)
        .x_label_area_size(X_LABELS)
        .y_label_area_size(Y_LABELS);
    if !frame.title.is_empty() {
        builder.caption(&frame.title, (FONT, 16, &INK));
    }
    builder
}

fn mesh<'b, Y>(
    chart: &mut Chart<'_, 'b, Y>,
    frame: &Frame,
    name: &dyn Fn(&f64) -> String,
    (labels, size): (usize, i32),
) -> Drawn
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .x_label_style(ink(size))
        .y_label_style(ink(12))
        .axis_desc_style(ink(13))
        .x_labels(labels)
        .x_label_formatter(&|x| name(x))
        .y_label_formatter(&|y| match frame.log_y {
            true if crowded(*y) => String::new(),
            true => figures(*y),
            false => number(*y),
        })
        .x_desc(&frame.x)
        .y_desc(&frame.y)
        .draw()?;
    Ok(())
}

fn legend<'b>(
    drawn: &mut plotters::chart::SeriesAnno<'_, SVGBackend<'b>>,
    name: &str,
    colour: RGBColor,
) {
    if !name.is_empty() {
        drawn
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
    }
}

fn show_legend<'a, 'b: 'a, 'n, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    mut names: impl Iterator<Item = &'n str>,
    drawn: &[(i32, i32)],
) -> Drawn
where
    X: Ranged,
    Y: Ranged,
{
    if names.any(|name| !name.is_empty()) {
        let corner = emptiest_corner(chart.plotting_area().get_pixel_range(), drawn);
        chart
            .configure_series_labels()
            .position(corner)
            .label_font(ink(12))
            .draw()?;
    }
    Ok(())
}

/// The corner with the fewest of the `drawn` pixels, so that the legend hides as little as it can.
fn emptiest_corner(
    (across, down): (std::ops::Range<i32>, std::ops::Range<i32>),
    drawn: &[(i32, i32)],
) -> SeriesLabelPosition {
    let right = across.end - (across.end - across.start) / 3;
    let left = across.start + (across.end - across.start) / 3;
    let top = down.start + (down.end - down.start) / 3;
    let bottom = down.end - (down.end - down.start) / 3;
    let count =
        |inside: &dyn Fn(i32, i32) -> bool| drawn.iter().filter(|(x, y)| inside(*x, *y)).count();
    let corners = [
        (
            count(&|x, y| x > right && y < top),
            SeriesLabelPosition::UpperRight,
        ),
        (
            count(&|x, y| x > right && y > bottom),
            SeriesLabelPosition::LowerRight,
        ),
        (
            count(&|x, y| x < left && y < top),
            SeriesLabelPosition::UpperLeft,
        ),
        (
            count(&|x, y| x < left && y > bottom),
            SeriesLabelPosition::LowerLeft,
        ),
    ];
    let [first, ..] = corners.clone();
    corners
        .into_iter()
        .min_by_key(|(count, _)| *count)
        .unwrap_or(first)
        .1
}

fn ink(size: i32) -> TextStyle<'static> {
    (FONT, size)
        .into_font()
        .color(&INK)
        .pos(Pos::new(HPos::Left, VPos::Top))
}

/// Draws on a clear canvas and hands the colours of text and lines over to the reader's page.
fn draw(frame: &Frame, paint: impl FnOnce(&Canvas<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, frame.size).into_drawing_area();
        if paint(&canvas).and_then(|()| Ok(canvas.present()?)).is_err() {
            // Only a range that holds no number fails; the frame then stays empty.
        }
    }
    let label = escape(
        &[&frame.title, &frame.y, &frame.x]
            .map(String::as_str)
            .join(", "),
    );
    let style = "<style>.maquette-plot{color:#1f2328;max-width:100%;height:auto}\
                 @media(prefers-color-scheme:dark){.maquette-plot{color:#e6edf3}}</style>";
    svg.replace(INK_HEX, "currentColor")
        .replacen(
            "<svg ",
            &format!("<svg class=\"maquette-plot\" role=\"img\" aria-label=\"{label}\" "),
            1,
        )
        .replacen(">\n", &format!(">\n{style}\n"), 1)
}

/// Text inside markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Lowest and highest value, never equal.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    match low.is_finite() && high.is_finite() {
        false => (0.0, 1.0),
        true if high > low => (low, high),
        true => (
            low - low.abs().max(1.0) * 0.05,
            high + high.abs().max(1.0) * 0.05,
        ),
    }
}

fn padded(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = span(values);
    let margin = 0.05 * (high - low);
    (low - margin, high + margin)
}

/// A tick label: at most four figures, powers of ten beyond.
fn number(value: f64) -> String {
    // On a linear axis so small a number is zero, missed by rounding.
    figures(if value.abs() < 1e-12 { 0.0 } else { value })
}

/// At most three figures, for a cell.
fn short(value: f64) -> String {
    let size = value.abs();
    match (0.01..1000.0).contains(&size) {
        true => format!(
            "{value:.*}",
            (2 - size.log10().floor() as i32).clamp(0, 2) as usize
        ),
        false => number(value),
    }
}

fn figures(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_axes_and_series_and_follows_the_page() {
        let frame = Frame::new("Loss", "step", "nats");
        let svg = lines(
            &frame,
            &[Series::new(
                "train",
                [(0.0, 4.0), (1.0, 2.0), (2.0, f64::NAN)],
            )],
        );
        for text in [
            "Loss",
            "step",
            "nats",
            "train",
            "currentColor",
            "<style>",
            "role=\"img\"",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains(INK_HEX) && !svg.contains("NaN"));
    }

    #[test]
    fn every_kind_draws_even_with_nothing_to_draw() {
        let frame = Frame::new("", "", "").log_y();
        let names = ["a".to_owned(), "b".to_owned()];
        for svg in [
            lines(&frame, &[]),
            lines(&frame, &[Series::new("flat", [(0.0, 1.0)])]),
            scatter(&frame, &[Series::new("", [(0.0, -1.0)])]),
            bars(&frame, &names, &[("ours".into(), vec![1.0, -2.0])]),
            bars(&frame, &[], &[]),
            heat(
                &frame,
                &names,
                &names,
                &[vec![0.0, 1.0], vec![2.0, f64::NAN]],
            ),
            heat(&frame, &[], &[], &[]),
        ] {
            assert!(
                svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"),
                "{svg}"
            );
        }
    }

    #[test]
    fn long_names_have_room() {
        let names = |letters: usize| vec!["a".to_owned(), "b".repeat(letters)];
        assert_eq!(
            [3, 40].map(|letters| room(&names(letters))),
            [Y_LABELS, 228]
        );
        let frame = Frame::new("", "", "").sized(460, 340);
        let of = |rows, columns| heat(&frame, &names(rows), &names(columns), &[vec![0.0, 1.0]]);
        assert!(of(40, 6).contains("width=\"460\""));
        assert!(of(40, 30).contains("width=\"606\""));
    }

    #[test]
    fn ticks_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.0, "1"),
            (1234.0, "1234"),
            (0.00001, "1e-5"),
            (2.5e6, "2.5e6"),
            (1e-17, "0"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(figures(1e-17), "1e-17", "on a logarithmic axis");
        assert_eq!(
            [0.25, 3.144, 31.44, 314.4].map(short),
            ["0.25", "3.14", "31.4", "314"]
        );
    }
}
