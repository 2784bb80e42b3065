//! Images in the engine: pulled where that works, imported where they were built.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::engine::Engine;
use crate::shell;

/// The label that says what an image was built from.
const KEY_LABEL: &str = "dev.kvcluster.lab.key";
/// How long the probe for pulling may take: a network that drops packets gives no answer at all.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// Some small image, to see whether any can be pulled.
const PROBE_IMAGE: &str = "hello-world:latest";

/// What an imported image runs.
#[derive(Debug, Default)]
pub struct Settings<'a> {
    /// Program and arguments; empty where the manifest names them.
    pub entrypoint: &'a [&'a str],
    /// User and group numbers; empty for root.
    pub user: &'a str,
    /// `NAME=value`.
    pub environment: &'a [&'a str],
}

impl Engine {
    /// Whether the engine can pull images.
    pub fn can_pull(&self) -> bool {
        let seconds = PROBE_LIMIT.as_secs().to_string();
        let mut command =
            shell::command(&["timeout", &seconds, "docker", "pull", "-q", PROBE_IMAGE]);
        self.point(&mut command);
        shell::succeeds(&mut command)
    }

    /// Pulls an image and gives it another name.
    pub fn pull_as(&self, public: &str, tag: &str, log: &Path) -> Result<()> {
        shell::run_logged(&mut self.docker(&["pull", public]), log)?;
        self.tag(public, tag)
    }

    /// Gives an image one more name.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        shell::output(&mut self.docker(&["tag", image, name])).map(drop)
    }

    /// Whether an image of this name is there at all.
    pub fn has(&self, tag: &str) -> bool {
        shell::succeeds(&mut self.docker(&["image", "inspect", tag]))
    }

    /// Whether an image of this name was built from these inputs.
    pub fn has_built(&self, tag: &str, key: &str) -> bool {
        let format = format!("{{{{index .Config.Labels \"{KEY_LABEL}\"}}}}");
        let found = shell::output(&mut self.docker(&["image", "inspect", "-f", &format, tag]));
        found.is_ok_and(|found| found == key)
    }

    /// The image's content id.
    pub fn image_id(&self, tag: &str) -> Result<String> {
        shell::output(&mut self.docker(&["image", "inspect", "-f", "{{.Id}}", tag]))
    }

    /// Makes an image of a folder.
    pub fn import(
        &self,
        folder: &Path,
        tag: &str,
        key: &str,
        settings: &Settings<'_>,
    ) -> Result<()> {
        let mut tar = shell::command(&["tar", "--numeric-owner", "-C"]);
        let mut tar = tar
            .arg(folder)
            .args(["-c", "."])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run tar")?;
        let pipe = tar
            .stdout
            .take()
            .expect("standard output was asked for as a pipe");
        let mut words = vec!["import".to_owned()];
        for change in changes(key, settings) {
            words.extend(["-c".to_owned(), change]);
        }
        words.extend(["-".to_owned(), tag.to_owned()]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let result = self
            .docker(&words)
            .stdin(pipe)
            .output()
            .context("cannot run docker")?;
        let packed = tar.wait()?.success();
        if !packed || !result.status.success() {
            let text = String::from_utf8_lossy(&result.stderr);
            bail!("cannot import the image {tag}: {}", text.trim());
        }
        Ok(())
    }

    /// Writes images into one archive.
    pub fn save(&self, tags: &[&str], file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        shell::output(&mut self.docker(&[&["save", "-o", &file], tags].concat())).map(drop)
    }
}

fn changes(key: &str, settings: &Settings<'_>) -> Vec<String> {
    let mut changes = vec![format!("LABEL {KEY_LABEL}={key}")];
    if !settings.entrypoint.is_empty() {
        let words = settings.entrypoint.iter().map(|word| format!("\"{word}\""));
        changes.push(format!(
            "ENTRYPOINT [{}]",
            words.collect::<Vec<_>>().join(", ")
        ));
    }
    if !settings.user.is_empty() {
        changes.push(format!("USER {}", settings.user));
    }
    changes.extend(
        settings
            .environment
            .iter()
            .map(|variable| format!("ENV {variable}")),
    );
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_imported_image_gets_its_settings() {
        let settings = Settings {
            entrypoint: &["/a", "b"],
            user: "65532:65532",
            environment: &["X=1"],
        };
        assert_eq!(
            changes("k", &settings),
            [
                "LABEL dev.kvcluster.lab.key=k",
                r#"ENTRYPOINT ["/a", "b"]"#,
                "USER 65532:65532",
                "ENV X=1"
            ]
        );
        assert_eq!(changes("k", &Settings::default()).len(), 1);
    }
}
