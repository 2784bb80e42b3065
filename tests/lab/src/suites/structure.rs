//! Checks that the source keeps to small files: half of them at most [`MEDIAN_LIMIT`] lines, none over [`FILE_LIMIT`]
//! without its tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Layout, write};
use crate::suites::report::Counts;

/// Half of all files are at most this long, without tests.
const MEDIAN_LIMIT: usize = 180;
/// No file is longer than this, without tests.
const FILE_LIMIT: usize = 500;
const FOLDERS: [&str; 4] = ["crds", "operator", "node", "tests"];

/// Measures every Rust file, and writes what it found to the log.
pub fn check(layout: &Layout, log: &Path) -> Result<Counts> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&layout.source(folder), &mut files)?;
    }
    let mut sizes = Vec::new();
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        sizes.push((lines_without_tests(&text), file));
    }
    sizes.sort();
    let problems = problems(&sizes);
    let median = sizes.get(sizes.len() / 2).map_or(0, |(lines, _)| *lines);
    let summary = format!("{} files, median {median} lines", sizes.len());
    write(
        log,
        [&[summary], problems.as_slice()].concat().join("\n") + "\n",
    )?;
    let failed = u32::try_from(problems.len())?;
    Ok(Counts {
        passed: 2_u32.saturating_sub(failed),
        failed,
    })
}

/// One sentence for each rule that is broken; `sizes` in ascending order.
fn problems(sizes: &[(usize, PathBuf)]) -> Vec<String> {
    let mut problems = Vec::new();
    let median = sizes.get(sizes.len() / 2).map_or(0, |(lines, _)| *lines);
    if median > MEDIAN_LIMIT {
        problems.push(format!(
            "the median file has {median} lines, more than {MEDIAN_LIMIT}"
        ));
    }
    let long = sizes.iter().filter(|(lines, _)| *lines > FILE_LIMIT);
    let long: Vec<String> = long
        .map(|(lines, file)| format!("{} ({lines})", file.display()))
        .collect();
    if !long.is_empty() {
        problems.push(format!("over {FILE_LIMIT} lines: {}", long.join(", ")));
    }
    problems
}

/// Lines up to the file's module of tests, which comes last.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_start = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests");
    lines.windows(2).position(is_start).unwrap_or(lines.len())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            // Integration tests beside `src` are tests as a whole.
            if !(path.ends_with("tests") && folder.join("src").is_dir()) {
                collect(&path, files)?;
            }
        } else if is_measured(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// Rust, and not a module of tests in a file of its own.
fn is_measured(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(lines: &[usize]) -> Vec<(usize, PathBuf)> {
        lines
            .iter()
            .map(|&lines| (lines, PathBuf::from("x.rs")))
            .collect()
    }

    #[test]
    fn long_files_and_a_high_median_are_problems() {
        assert!(problems(&sizes(&[10, 180, 500])).is_empty());
        assert_eq!(problems(&sizes(&[10, 181, 500])).len(), 1);
        assert_eq!(
            problems(&sizes(&[10, 20, 501])),
            ["over 500 lines: x.rs (501)"]
        );
    }

    #[test]
    fn tests_do_not_count() {
        assert!(is_measured(Path::new("a/slot.rs")) && is_measured(Path::new("a/more_tests.rs")));
        assert!(!is_measured(Path::new("a/slot/tests.rs")) && !is_measured(Path::new("a/b.toml")));
        let text = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n";
        assert_eq!(lines_without_tests(text), 2);
        assert_eq!(lines_without_tests("a\nb\n"), 2);
    }
}
