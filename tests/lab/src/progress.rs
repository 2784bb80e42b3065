//! What the user sees while something runs: one line per step with its time. Spinners on a terminal, plain lines
//! elsewhere. Everything goes to standard error; results go to standard output.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a spinner moves: slow enough to cost nothing, quick enough to look alive.
const SPINNER_TICK: Duration = Duration::from_millis(120);

/// A step this young says nothing more in plain lines: most are over soon.
const QUIET_TIME: Duration = Duration::from_secs(5);

/// Prints steps and their times.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    is_terminal: bool,
}

/// A step that runs: lets the work say where it is.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    title: String,
    started: Instant,
    began: Duration,
}

impl Progress {
    /// Spinners if standard error is a terminal, plain lines if not.
    pub fn detect() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            started: Instant::now(),
            is_terminal,
        }
    }

    /// Runs `work` as one step and prints its title and time, failed or not.
    pub fn step<T>(&self, title: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let step = Step {
            bar: self.bar(title),
            title: title.to_owned(),
            started: Instant::now(),
            began: self.started.elapsed(),
        };
        if step.bar.is_none() {
            eprintln!("{} {title} …", clock(self.started.elapsed()));
        }
        let result = work(&step);
        if let Some(bar) = &step.bar {
            bar.finish_and_clear();
        }
        let (mark, outcome) = if result.is_ok() {
            ("✓", "done")
        } else {
            ("✗", "failed")
        };
        let took = seconds(step.started.elapsed());
        if self.is_terminal {
            eprintln!("{mark} {title} ({took})");
        } else {
            eprintln!(
                "{} {title}: {outcome} in {took}",
                clock(self.started.elapsed())
            );
        }
        result
    }

    /// One line between steps.
    pub fn note(&self, text: &str) {
        if self.is_terminal {
            eprintln!("  {text}");
        } else {
            eprintln!("{} {text}", clock(self.started.elapsed()));
        }
    }

    /// The time since the command began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn bar(&self, title: &str) -> Option<ProgressBar> {
        if !self.is_terminal {
            return None;
        }
        let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim} {elapsed}")
            .expect("the template is a constant and well-formed");
        let bar = ProgressBar::new_spinner()
            .with_style(style)
            .with_prefix(title.to_owned());
        bar.enable_steady_tick(SPINNER_TICK);
        Some(bar)
    }
}

impl Step {
    /// Says what the step does just now; in plain lines only once the step takes long.
    pub fn detail(&self, text: &str) {
        let elapsed = self.started.elapsed();
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if elapsed < QUIET_TIME => {}
            None => eprintln!("{} {}: {text}", clock(self.began + elapsed), self.title),
        }
    }
}

/// A duration as `1.2 s` or `3 min 04 s`.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

fn clock(duration: Duration) -> String {
    format!("[{:7.1} s]", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(seconds(Duration::from_millis(59_949)), "59.9 s");
        assert_eq!(seconds(Duration::from_secs(184)), "3 min 04 s");
    }

    #[test]
    fn a_step_hands_back_what_its_work_gave() {
        let progress = Progress {
            started: Instant::now(),
            is_terminal: false,
        };
        assert_eq!(
            progress
                .step("adds", |_| Ok(1 + 1))
                .expect("the work succeeds"),
            2
        );
        let failed = progress.step("fails", |_| -> Result<()> { anyhow::bail!("why") });
        assert_eq!(failed.expect_err("the work fails").to_string(), "why");
    }
}
