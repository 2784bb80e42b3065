//! The same question, asked of Porcupine, by a small Go program.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Operation;
use super::linear::Verdict;
use crate::processes;

/// Longest build: Porcupine is one small module.
const BUILD_LIMIT: Duration = Duration::from_mins(3);
/// Longest check of one file; a key has a limit of its own in the program.
const CHECK_LIMIT: Duration = Duration::from_mins(5);

/// The built program.
pub struct Porcupine(PathBuf);

#[derive(Deserialize)]
struct Line {
    key: String,
    result: String,
}

impl Porcupine {
    /// Builds the program into the target folder; it is quick when nothing changed.
    pub fn build() -> Result<Self> {
        let own = std::env::current_exe().context("a process knows its program")?;
        let folder = own.parent().context("a program stands in a folder")?;
        let program = folder.join("kvcluster-porcupine");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("porcupine");
        let mut command = Command::new("go");
        command
            .current_dir(source)
            .args(["build", "-trimpath", "-o"]);
        processes::output(command.arg(&program).arg("."), BUILD_LIMIT)?;
        Ok(Self(program))
    }

    /// The verdict for each key.
    pub fn check(&self, operations: &[Operation]) -> Result<BTreeMap<String, Verdict>> {
        let file = self
            .0
            .with_file_name(format!("porcupine-{}.jsonl", std::process::id()));
        let mut text = Vec::new();
        for operation in operations {
            serde_json::to_writer(&mut text, operation)?;
            writeln!(text)?;
        }
        std::fs::write(&file, text)?;
        let printed = processes::output(Command::new(&self.0).arg(&file), CHECK_LIMIT);
        std::fs::remove_file(&file)?;
        let mut verdicts = BTreeMap::new();
        for line in printed?.lines() {
            let Line { key, result } = serde_json::from_str(line)
                .with_context(|| format!("the program printed {line:?}"))?;
            let verdict = match result.as_str() {
                "Ok" => Verdict::Linearizable,
                "Illegal" => Verdict::Violated,
                "Unknown" => Verdict::Unknown,
                other => bail!("Porcupine said {other:?}"),
            };
            verdicts.insert(key, verdict);
        }
        Ok(verdicts)
    }
}
