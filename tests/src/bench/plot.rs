//! A bench as a picture: a panel for each quantity, a bar for each contender's median, a line from least to most.

use std::cmp::Reverse;
use std::fmt::Display;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Color as _, DrawingArea, EmptyElement, IntoDrawingArea as _,
    IntoSegmentedCoord as _, PathElement, RGBColor, Rectangle, SVGBackend, SegmentValue, Text, WHITE,
};
use plotters::style::{IntoFont as _, Palette as _, Palette99};

use super::report::BenchReport;
use super::sample::Metric;
use super::table::{axis, number};

const WIDTH: u32 = 900;
/// Heights in pixels: of a bar, and of what a panel has beside bars.
const BAR: u32 = 26;
const PANEL: u32 = 78;
/// Panels of a picture at most: those that most contenders have a bar in come first.
const PANELS: usize = 8;

/// Draws `bench`; nothing where nothing was measured.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(bench: &BenchReport, path: &Path) -> Result<()> {
    let mut quantities = bench.quantities();
    quantities.sort_by_key(|quantity| Reverse(bars(bench, &quantity.name).len()));
    quantities.truncate(PANELS);
    if quantities.is_empty() {
        return Ok(());
    }
    let heights: Vec<u32> =
        quantities.iter().map(|quantity| height(bars(bench, &quantity.name).len())).collect();
    let mut rest = SVGBackend::new(path, (WIDTH, heights.iter().sum())).into_drawing_area();
    let whole = rest.clone();
    rest.fill(&WHITE).map_err(drawing)?;
    for (quantity, height) in quantities.iter().zip(heights) {
        let (panel, below) = rest.split_vertically(height);
        draw_panel(&panel, bench, quantity)?;
        rest = below;
    }
    whole.present().map_err(drawing)
}

fn height(bars: usize) -> u32 {
    PANEL + BAR * u32::try_from(bars).unwrap_or(1)
}

/// Who has measured this, the first one last, because bars are drawn from the bottom up; with the position among all
/// contenders, which chooses the colour.
fn bars<'a>(bench: &'a BenchReport, quantity: &str) -> Vec<(usize, &'a str, &'a Metric)> {
    let rows = bench.rows.iter().enumerate().rev();
    rows.filter_map(|(index, row)| Some((index, row.contender.as_str(), row.metric(quantity)?))).collect()
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(panel: &Panel<'_>, bench: &BenchReport, quantity: &Metric) -> Result<()> {
    let bars = bars(bench, &quantity.name);
    let most = bars.iter().map(|(_, _, metric)| metric.max).fold(0.0, f64::max);
    let right = if most > 0.0 { most * 1.15 } else { 1.0 };
    let last = i32::try_from(bars.len())? - 1;
    let names: Vec<&str> = bars.iter().map(|(_, name, _)| *name).collect();
    let mut chart = ChartBuilder::on(panel)
        .caption(axis(&quantity.name, quantity.unit), ("sans-serif", 20).into_font())
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(180)
        .build_cartesian_2d(0.0..right, (0..last).into_segmented())
        .map_err(drawing)?;
    let name = |segment: &SegmentValue<i32>| match segment {
        SegmentValue::CenterOf(index) | SegmentValue::Exact(index) => usize::try_from(*index)
            .ok()
            .and_then(|index| names.get(index))
            .map_or_else(String::new, |name| (*name).into()),
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_mesh()
        .label_style(("sans-serif", 15).into_font())
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .x_label_formatter(&|value| number(*value))
        .draw()
        .map_err(drawing)?;
    for (position, (index, _, metric)) in (0..).zip(&bars) {
        let (red, green, blue) = Palette99::COLORS[index % Palette99::COLORS.len()];
        let (low, high) = (SegmentValue::Exact(position), SegmentValue::Exact(position + 1));
        let mut bar =
            Rectangle::new([(0.0, low), (metric.median, high)], RGBColor(red, green, blue).mix(0.7).filled());
        bar.set_margin(3, 3, 0, 0);
        chart.draw_series([bar]).map_err(drawing)?;
        let middle = SegmentValue::CenterOf(position);
        let whisker =
            PathElement::new(vec![(metric.min, middle.clone()), (metric.max, middle.clone())], BLACK);
        chart.draw_series([whisker]).map_err(drawing)?;
        let label = Text::new(number(metric.median), (6, -6), ("sans-serif", 15).into_font());
        chart.draw_series([EmptyElement::at((metric.max, middle)) + label]).map_err(drawing)?;
    }
    Ok(())
}

fn drawing(error: impl Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::super::report::Row;
    use super::super::sample::Unit;
    use super::*;

    #[test]
    fn every_contender_has_a_bar_with_its_name() {
        let row = |name: &str, samples: &[f64]| Row {
            contender: name.into(),
            command: vec![],
            metrics: vec![Metric::new("start to init", Unit::Milliseconds, samples.to_vec()).unwrap()],
            failures: vec![],
        };
        let rows = vec![row("uvm none", &[1.0, 2.0, 3.0]), row("qemu microvm", &[5.0])];
        let bench = BenchReport { name: "boot".into(), title: String::new(), rows, missing: vec![] };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.svg");
        draw(&bench, &path).unwrap();
        let picture = std::fs::read_to_string(path).unwrap();
        for word in ["uvm none", "qemu microvm", "start to init, ms"] {
            assert!(picture.contains(word), "expected {word:?} in {picture}");
        }
    }
}
