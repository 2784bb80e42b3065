//! Programs that the lab cannot bring itself: each is found, or missed with its remedy.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Kafka 4 brokers refuse an older Java.
const OLDEST_JAVA: u32 = 17;

/// A program the user has to install, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// The Go toolchain.
    Go,
    /// A Java runtime.
    Java,
    /// Apache Maven.
    Maven,
    /// Rust's build tool.
    Cargo,
}

impl Tool {
    fn program(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Java => "java",
            Self::Maven => "mvn",
            Self::Cargo => "cargo",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Go => {
                "Go builds Kubernetes, kind and helm: install Go 1.24 or newer from https://go.dev/dl"
            }
            Self::Java => {
                "Kafka runs on Java: install 17 or newer, `apt-get install openjdk-17-jdk-headless` on Debian"
            }
            Self::Maven => {
                "Maven brings Kafka's jars: install it, `apt-get install maven` on Debian"
            }
            Self::Cargo => "cargo builds the store: install Rust from https://rustup.rs",
        }
    }
}

/// Refuses with the remedy when a program is not on the path.
pub fn require(tools: &[Tool]) -> Result<()> {
    tools
        .iter()
        .try_for_each(|tool| verdict(*tool, find(tool.program()).is_some()))?;
    if tools.contains(&Tool::Java) {
        let text = shell::output(&mut shell::command(&["java", "--version"]))
            .context("java does not answer `java --version`")?;
        java_verdict(&text)?;
    }
    Ok(())
}

/// Where a program lies on the path or in the system's own folders, which a plain user's path may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let mut folders = std::env::split_paths(&path).chain(system);
    folders.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))
}

fn verdict(tool: Tool, is_there: bool) -> Result<()> {
    if !is_there {
        bail!("`{}` is not on the path. {}", tool.program(), tool.remedy());
    }
    Ok(())
}

fn java_verdict(version_text: &str) -> Result<()> {
    let major = version_text.split_whitespace().nth(1).and_then(|version| {
        version
            .split(|letter: char| !letter.is_ascii_digit())
            .next()?
            .parse::<u32>()
            .ok()
    });
    match major {
        Some(major) if major < OLDEST_JAVA => {
            bail!("Java {major} is too old. {}", Tool::Java.remedy())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_remedy() {
        assert!(verdict(Tool::Go, true).is_ok());
        let error = verdict(Tool::Maven, false)
            .expect_err("it is missing")
            .to_string();
        assert!(error.contains("`mvn`") && error.contains("apt-get install maven"));
    }

    #[test]
    fn an_old_java_is_refused() {
        assert!(java_verdict("openjdk 17.0.15 2025-04-15\nOpenJDK …").is_ok());
        assert!(java_verdict("openjdk 25 2025-09-16").is_ok());
        assert!(java_verdict("openjdk 11.0.2 2019-01-15").is_err());
        assert!(java_verdict("openjdk 21-ea 2023-09-19").is_ok());
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }
}
