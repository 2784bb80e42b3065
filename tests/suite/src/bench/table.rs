//! Measurements → a Markdown table of medians.

use std::fmt::Write as _;

use super::Measurement;

/// A row for each number of slots, a column for each number of connections; each cell: writes per second, p50 and p99 in
/// milliseconds, medians over the rounds.
pub(super) fn markdown(all: &[Measurement], slots: &[u32], connections: &[usize]) -> String {
    let mut text = "| slots |".to_owned();
    for count in connections {
        write!(text, " {count} conn. |").expect("a String takes all that is written");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(connections.len()));
    for &slots in slots {
        write!(text, "\n| {slots} |").expect("a String takes all that is written");
        for &count in connections {
            let of = |figure: fn(&Measurement) -> f64| median(all, slots, count, figure);
            let cell = match (of(|m| m.per_second), of(|m| m.p50_ms), of(|m| m.p99_ms)) {
                (Some(rate), Some(p50), Some(p99)) => {
                    format!("{rate:.0}/s, {p50:.1} / {p99:.1} ms")
                }
                _ => "-".to_owned(),
            };
            write!(text, " {cell} |").expect("a String takes all that is written");
        }
    }
    text
}

fn median(
    all: &[Measurement],
    slots: u32,
    connections: usize,
    figure: fn(&Measurement) -> f64,
) -> Option<f64> {
    let mut figures: Vec<f64> = all
        .iter()
        .filter(|m| m.slots == slots && m.connections == connections)
        .map(figure)
        .collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_medians() {
        let measurement = |per_second| Measurement {
            commit: String::new(),
            round: 0,
            slots: 4,
            connections: 1,
            writes: 1,
            errors: 0,
            per_second,
            p50_ms: 1.0,
            p99_ms: 2.0,
        };
        let all = [900.0, 100.0, 300.0].map(measurement);
        let expected =
            "| slots | 1 conn. | 2 conn. |\n|---|---|---|\n| 4 | 300/s, 1.0 / 2.0 ms | - |";
        assert_eq!(markdown(&all, &[4], &[1, 2]), expected);
    }
}
