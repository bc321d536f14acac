//! Reports as text: a table for each bench, and what has changed since another run.

use std::fmt::Write as _;

use super::report::{BenchReport, Report};
use super::sample::{Metric, Unit};

/// The whole report.
#[must_use]
pub fn of_report(report: &Report) -> String {
    let place = &report.environment;
    let mut text = format!(
        "{} {} on {}, {} processors ({}), {} MiB\n",
        place.kernel,
        place.machine,
        place.processor,
        place.processors,
        if place.is_emulated() { "emulated: compare, do not quote" } else { "times are real" },
        place.memory_kib / 1024
    );
    for program in &place.programs {
        text.push_str(program);
        text.push('\n');
    }
    for bench in &report.benches {
        text.push('\n');
        text.push_str(&of_bench(bench));
    }
    text
}

/// One bench in Markdown: a line for each quantity, a column for each contender, and ratios to the first.
#[must_use]
pub fn of_bench(bench: &BenchReport) -> String {
    let mut text = format!("### {}: {}\n\n", bench.name, bench.title);
    if !bench.rows.is_empty() {
        let names: Vec<&str> = bench.rows.iter().map(|row| row.contender.as_str()).collect();
        let _ = writeln!(text, "| median [least–most] | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "---:|".repeat(names.len()));
        for quantity in bench.quantities() {
            let first = bench.rows.first().and_then(|row| row.metric(&quantity.name));
            let cells = bench.rows.iter().map(|row| {
                let is_first = std::ptr::eq(row, &raw const bench.rows[0]);
                row.metric(&quantity.name)
                    .map_or_else(|| "–".to_owned(), |metric| cell(metric, first.filter(|_| !is_first)))
            });
            let _ = writeln!(text, "| {} | {} |", quantity.name, cells.collect::<Vec<_>>().join(" | "));
        }
    }
    for row in bench.rows.iter().filter(|row| !row.failures.is_empty()) {
        let _ =
            writeln!(text, "\n{}: {} failed: {}", row.contender, row.failures.len(), row.failures.join("; "));
    }
    for missing in &bench.missing {
        let _ = writeln!(text, "\nnot measured: {missing}");
    }
    text
}

fn cell(metric: &Metric, first: Option<&Metric>) -> String {
    let Metric { unit, median, min, max, .. } = metric;
    let range = if metric.samples.len() > 1 && max > min {
        format!(" [{}–{}]", number(*min), number(*max))
    } else {
        String::new()
    };
    let ratio =
        first.filter(|first| first.median > 0.0).map(|first| format!(" ×{:.2}", median / first.median));
    let symbol = unit.symbol();
    let space = if symbol.is_empty() { "" } else { " " };
    format!("{}{space}{symbol}{range}{}", number(*median), ratio.unwrap_or_default())
}

/// A number with as many places as matter.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || (value - value.round()).abs() < 1e-9 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What has changed from `old` to `new`: medians of both and their ratio, for all that both have.
#[must_use]
pub fn of_changes(old: &Report, new: &Report) -> String {
    let mut text = String::from("| bench | contender | quantity | before | now | ratio | |\n");
    text.push_str("|---|---|---|---:|---:|---:|---|\n");
    for bench in &new.benches {
        for row in &bench.rows {
            let before = old.bench(&bench.name).and_then(|bench| bench.row(&row.contender));
            for metric in &row.metrics {
                let Some(before) = before.and_then(|row| row.metric(&metric.name)) else { continue };
                let ratio = if before.median > 0.0 { metric.median / before.median } else { 1.0 };
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} {} | {ratio:.2} | {} |",
                    bench.name,
                    row.contender,
                    metric.name,
                    number(before.median),
                    number(metric.median),
                    metric.unit.symbol(),
                    verdict(before, metric)
                );
            }
        }
    }
    text
}

/// Whether two samples differ by more than they scatter.
fn verdict(before: &Metric, now: &Metric) -> &'static str {
    let apart = before.max < now.min || now.max < before.min;
    let more = now.median > before.median;
    match (apart, more == now.unit.more_is_better()) {
        (false, _) => "",
        (true, true) => "better",
        (true, false) => "worse",
    }
}

/// Unit and name of a quantity, for an axis.
#[must_use]
pub fn axis(name: &str, unit: Unit) -> String {
    match unit.symbol() {
        "" => name.to_owned(),
        symbol => format!("{name}, {symbol}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Row;
    use super::*;

    fn row(contender: &str, samples: &[f64]) -> Row {
        let metric = Metric::new("time", Unit::Milliseconds, samples.to_vec()).unwrap();
        Row { contender: contender.into(), command: vec![], metrics: vec![metric], failures: vec![] }
    }

    fn bench(rows: Vec<Row>) -> BenchReport {
        BenchReport {
            name: "boot".into(),
            title: "booting".into(),
            rows,
            missing: vec!["fio: not here".into()],
        }
    }

    #[test]
    fn ratios_are_to_the_first_contender() {
        let text = of_bench(&bench(vec![row("a", &[10.0, 20.0, 30.0]), row("b", &[30.0])]));
        assert!(text.contains("| time | 20 ms [10–30] | 30 ms ×1.50 |"), "{text}");
        assert!(text.contains("not measured: fio: not here"));
    }

    #[test]
    fn only_what_differs_by_more_than_its_scatter_is_a_change() {
        let time = |samples: &[f64]| Metric::new("time", Unit::Milliseconds, samples.to_vec()).unwrap();
        assert_eq!(verdict(&time(&[1.0, 3.0]), &time(&[2.0, 4.0])), "");
        assert_eq!(verdict(&time(&[1.0, 2.0]), &time(&[3.0, 4.0])), "worse");
        assert_eq!(verdict(&time(&[3.0, 4.0]), &time(&[1.0, 2.0])), "better");
    }
}
