//! Runs programs. Output goes to a log file that every error names, or is handed back.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of a log's last lines an error shows: enough for a cause, few enough to read.
const SHOWN_LOG_LINES: usize = 12;

/// How long to wait between two looks at something that becomes ready by itself.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A command from its words.
pub fn command<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let (program, arguments) = words.split_first().expect("every caller names a program");
    let mut command = Command::new(program);
    command.args(arguments);
    // What cargo says to the program that it runs is not meant for a cargo that this program runs: build scripts that look
    // at these would find them changed, and the heavy crates would be compiled again.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about_this_program(name)) {
        command.env_remove(name);
    }
    command
}

fn is_about_this_program(variable: &OsStr) -> bool {
    const BEGINNINGS: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    let name = variable.to_string_lossy();
    BEGINNINGS
        .iter()
        .any(|beginning| name.starts_with(beginning))
}

/// Runs a command with its output appended to `log`; an error shows the log's end and names it.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let mut file = open_log(log)?;
    writeln!(file, "$ {}", shown(command))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {}", program(command)))?;
    if status.success() {
        return Ok(());
    }
    bail!(
        "{} failed ({status}); log {}:\n{}",
        program(command),
        log.display(),
        tail(log)
    );
}

/// Runs a command and hands back its standard output without the last line break.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program(command)))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr);
        bail!(
            "`{}` failed ({}): {}",
            shown(command),
            result.status,
            text.trim()
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout)
        .trim_end()
        .to_owned())
}

/// Runs a command that reads `input` and hands back its standard output.
pub fn output_of_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program(command)))?;
    let mut pipe = child
        .stdin
        .take()
        .expect("standard input was asked for as a pipe");
    pipe.write_all(input.as_bytes())?;
    drop(pipe);
    let result = child.wait_with_output()?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr);
        bail!(
            "`{}` failed ({}): {}",
            shown(command),
            result.status,
            text.trim()
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout)
        .trim_end()
        .to_owned())
}

/// Runs a command silently and says whether it succeeded.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Looks until `ready` gives a value; `Ok(None)` means not yet.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if started.elapsed() >= limit {
            bail!("{what} did not happen within {} s", limit.as_secs());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Opens a log for appending, with its folder.
pub fn open_log(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write the log {}", path.display()))
}

/// The last lines of a file, indented; empty if it cannot be read.
pub fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&bytes), SHOWN_LOG_LINES)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_failure_are_told_apart() {
        assert_eq!(
            output(&mut command(&["printf", "a b\n"])).expect("printf runs"),
            "a b"
        );
        let error = output(&mut command(&["sh", "-c", "echo why >&2; exit 3"]));
        assert!(error.expect_err("exit 3").to_string().contains("why"));
        assert!(output(&mut command(&["no-such-program-here"])).is_err());
    }

    #[test]
    fn input_reaches_the_program() {
        let text = output_of_input(&mut command(&["tr", "a-z", "A-Z"]), "abc").expect("tr runs");
        assert_eq!(text, "ABC");
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "  b\n  c");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn waiting_ends_with_the_value_or_the_limit() {
        let value = wait_for("it", Duration::ZERO, || Ok(Some(7))).expect("it is there at once");
        assert_eq!(value, 7);
        let late = wait_for("it", Duration::ZERO, || Ok(None::<()>)).expect_err("it never comes");
        assert_eq!(late.to_string(), "it did not happen within 0 s");
    }
}
