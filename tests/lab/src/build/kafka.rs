//! Kafka's jars, by Maven.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::{Layout, key_of, write};
use crate::machine::tools::{Tool, require};
use crate::progress::Progress;
use crate::shell;

/// The version of Kafka that the lab runs; the recipe names the same.
pub const VERSION: &str = "4.1.0";

/// What Maven fetches.
pub const RECIPE: &str = include_str!("../../recipes/kafka/pom.xml");

/// Copies a project's dependencies; pinned, so that the same recipe gives the same jars.
const COPY_GOAL: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// Whether the jars are there already.
pub fn is_fetched(layout: &Layout) -> bool {
    layout.artifact("kafka", &key()).is_dir()
}

/// The folder with Kafka's jars, its tools and a logger.
pub fn jars(layout: &Layout, progress: &Progress) -> Result<PathBuf> {
    let key = key();
    if is_fetched(layout) {
        return Ok(layout.artifact("kafka", &key).join("libs"));
    }
    require(&[Tool::Java, Tool::Maven])?;
    let title = format!("fetch Kafka {VERSION}");
    let made = progress.step(&title, |_| {
        layout.artifact_or("kafka", &key, |folder| {
            write(&folder.join("pom.xml"), RECIPE)?;
            let libs = format!("-DoutputDirectory={}", folder.join("libs").display());
            let words = [
                "mvn",
                "-B",
                "-ntp",
                "-q",
                COPY_GOAL,
                "-DincludeScope=runtime",
                &libs,
            ];
            shell::run_logged(
                shell::command(&words).current_dir(folder),
                &layout.log("kafka"),
            )
            .context("Maven could not fetch Kafka's jars")
        })
    })?;
    Ok(made.join("libs"))
}

fn key() -> String {
    format!("{VERSION}-{}", key_of(&[RECIPE]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_names_the_version() {
        assert_eq!(
            RECIPE
                .matches(&format!("<version>{VERSION}</version>"))
                .count(),
            2
        );
    }
}
