//! Counts out of a suite's output, and the summary. Pure but for reading a log's end.

use std::path::Path;
use std::time::Duration;

use crate::progress::seconds;
use crate::suites::table::Suite;

/// How many lines of a failed suite's log are shown.
const SHOWN_FAILURE_LINES: usize = 60;

/// Tests of a suite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// That held.
    pub passed: u32,
    /// That did not.
    pub failed: u32,
}

/// One line of the summary.
#[derive(Debug)]
pub struct Line {
    /// The suite, or what was brought up for one.
    pub name: String,
    /// Its tests.
    pub counts: Counts,
    /// Its time.
    pub took: Duration,
    /// What it should take at most.
    pub budget: Duration,
}

impl Line {
    /// What a suite ran against could not be taken down.
    pub fn failed_down(suite: &Suite) -> Self {
        Self {
            name: "(down)".to_owned(),
            ..Self::failed(suite)
        }
    }

    /// A suite that could not run at all.
    pub fn failed(suite: &Suite) -> Self {
        let counts = Counts {
            passed: 0,
            failed: 1,
        };
        Self {
            name: suite.name.to_owned(),
            counts,
            took: Duration::ZERO,
            budget: suite.budget,
        }
    }
}

/// The sum over all `test result: … N passed; N failed; …` lines; `None` if there is none.
pub fn parse(output: &str) -> Option<Counts> {
    let lines = output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: "));
    lines.fold(None, |sum: Option<Counts>, line| {
        let mut sum = sum.unwrap_or_default();
        sum.passed += number_before(line, " passed;");
        sum.failed += number_before(line, " failed;");
        Some(sum)
    })
}

fn number_before(line: &str, word: &str) -> u32 {
    let before = line
        .split(word)
        .next()
        .filter(|before| before.len() < line.len());
    let last = before.and_then(|before| before.split_whitespace().last());
    last.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The sum over all lines.
pub fn total(lines: &[Line]) -> Counts {
    lines.iter().fold(Counts::default(), |sum, line| Counts {
        passed: sum.passed + line.counts.passed,
        failed: sum.failed + line.counts.failed,
    })
}

/// The summary; its last line is `N passed, N failed`.
pub fn render(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    let total = total(lines);
    let last = format!("{} passed, {} failed\n", total.passed, total.failed);
    lines
        .iter()
        .map(|line| render_one(line, width))
        .chain([last])
        .collect()
}

fn render_one(line: &Line, width: usize) -> String {
    let Line {
        name,
        counts: Counts { passed, failed },
        took,
        budget,
    } = line;
    let late = if took > budget { "  OVER BUDGET" } else { "" };
    let (took, budget) = (seconds(*took), seconds(*budget));
    format!(
        "{name:<width$} {passed:>5} passed {failed:>3} failed {took:>13} of {budget:>13}{late}\n"
    )
}

/// What a failed suite's log says: its failures if it names them, else its end.
pub fn failures(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines
        .iter()
        .position(|line| *line == "failures:")
        .unwrap_or(lines.len());
    let last = lines.len().saturating_sub(SHOWN_FAILURE_LINES);
    let from = if from == lines.len() { last } else { from };
    lines[from..]
        .iter()
        .take(SHOWN_FAILURE_LINES)
        .copied()
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let output = "running 2 tests\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: FAILED. 11 passed; 3 failed; 0 ignored; finished in 1.01s\n";
        assert_eq!(
            parse(output),
            Some(Counts {
                passed: 13,
                failed: 3
            })
        );
        assert_eq!(parse("no tests here"), None);
        assert_eq!(parse("test result: odd"), Some(Counts::default()));
    }

    fn line(name: &str, passed: u32, failed: u32, took: u64, budget: u64) -> Line {
        Line {
            name: name.to_owned(),
            counts: Counts { passed, failed },
            took: Duration::from_secs(took),
            budget: Duration::from_secs(budget),
        }
    }

    #[test]
    fn the_summary_ends_with_the_sums() {
        let text = render(&[line("unit", 12, 0, 5, 10), line("kind", 3, 1, 700, 600)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "unit    12 passed   0 failed         5.0 s of        10.0 s"
        );
        assert!(lines[1].ends_with("11 min 40 s of   10 min 00 s  OVER BUDGET"));
        assert_eq!(lines[2], "15 passed, 1 failed");
    }
}
