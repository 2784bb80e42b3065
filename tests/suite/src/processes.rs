//! Command-line programs with a time limit.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Time between two looks whether a program has ended: short against the cost of starting one.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Whether it ended with status 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end, which must come within `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let name = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let success = wait(&mut child, limit).with_context(|| name.clone())?;
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().expect("a reader does not panic")).into_owned()
    };
    Ok(Ended {
        success,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

/// Runs a program that must succeed; its standard output.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let name = format!("{command:?}");
    let ended = run(command, limit)?;
    if !ended.success {
        bail!("{name} failed: {}{}", ended.stdout, ended.stderr);
    }
    Ok(ended.stdout)
}

/// A program of this workspace, beside the test's own.
pub fn own_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("a process knows its program")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|p| p.exists());
    found.with_context(|| format!("{name} is not built: run `cargo build --bin {name}`"))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is what there is to show.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("it ran longer than {limit:?} and was stopped");
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_too_long_is_stopped() {
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50))
            .expect_err("it sleeps too long");
        assert!(format!("{error:#}").contains("longer than"), "{error:#}");
    }

    #[test]
    fn a_failure_carries_what_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 3"]);
        let error = output(&mut command, Duration::from_secs(10)).expect_err("it fails");
        assert!(error.to_string().contains("why"), "{error}");
    }
}
