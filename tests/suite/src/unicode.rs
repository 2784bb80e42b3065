//! The real input: Debian's `UnicodeData.txt`. Key = code point, value = the whole line.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Where Debian's package `unicode-data` puts the table.
const PATH: &str = "/usr/share/unicode/UnicodeData.txt";
/// Lines of the table of Unicode 15.0.
pub const LINES: usize = 34_924;

/// All (code point, line) pairs in the order of the file.
pub fn rows() -> Result<Vec<(String, String)>> {
    rows_of(Path::new(PATH))
}

fn rows_of(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}: install Debian's package `unicode-data`",
            path.display()
        )
    })?;
    let row = |line: &str| {
        let (code_point, _) = line.split_once(';').context("a line without a semicolon")?;
        Ok((code_point.to_owned(), line.to_owned()))
    };
    let rows: Vec<_> = text.lines().map(row).collect::<Result<_>>()?;
    ensure!(
        rows.len() == LINES,
        "{} holds {} lines, not {LINES}",
        path.display(),
        rows.len()
    );
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_names_the_remedy() {
        let error = rows_of(Path::new("/nowhere")).expect_err("there is no such file");
        assert!(error.to_string().contains("unicode-data"), "{error}");
    }
}
