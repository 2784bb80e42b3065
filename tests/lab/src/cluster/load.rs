//! Brings images from the engine into the cluster's nodes, each once.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::shell;

/// Where a node notes which images it got.
const NOTES: &str = "/kind/loaded";

impl Cluster {
    /// Loads those of `tags` that the node does not have in their present form; says which these were.
    pub fn load<'a>(&self, node: &str, tags: &[&'a str], log: &Path) -> Result<Vec<&'a str>> {
        let listing = shell::output(
            &mut self.in_node(node, &["sh", "-c", &format!("ls {NOTES} 2>&1 || true")]),
        )?;
        let mut wanting = Vec::new();
        for tag in tags {
            let mark = note_name(tag, &self.engine.image_id(tag)?);
            if !listing.lines().any(|line| line == mark) {
                wanting.push((*tag, mark));
            }
        }
        if wanting.is_empty() {
            return Ok(Vec::new());
        }
        let tags: Vec<&str> = wanting.iter().map(|(tag, _)| *tag).collect();
        self.send(node, &tags, log)?;
        for (_, note) in &wanting {
            let script = format!("mkdir -p {NOTES} && touch {NOTES}/{note}");
            shell::output(&mut self.in_node(node, &["sh", "-c", &script]))?;
        }
        Ok(tags)
    }

    fn send(&self, node: &str, tags: &[&str], log: &Path) -> Result<()> {
        let log = shell::open_log(log)?;
        let mut save = self.engine.docker(&[&["save"], tags].concat());
        let mut save = save
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot run docker")?;
        let pipe = save
            .stdout
            .take()
            .expect("standard output was asked for as a pipe");
        let words = [
            "exec", "-i", node, "ctr", "-n", "k8s.io", "images", "import", "-",
        ];
        let import = self
            .engine
            .docker(&words)
            .stdin(pipe)
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !save.wait()?.success() || !import.success() {
            bail!("cannot load {} into {node}", tags.join(", "));
        }
        Ok(())
    }

    fn in_node(&self, node: &str, words: &[&str]) -> std::process::Command {
        self.engine.docker(&[&["exec", node], words].concat())
    }
}

/// A file name that changes with the image's name and its content.
fn note_name(tag: &str, id: &str) -> String {
    let plain = |text: &str| text.replace(['/', ':'], "_");
    format!("{}_{}", plain(tag), plain(id.trim_start_matches("sha256:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_a_plain_file_name() {
        assert_eq!(
            note_name("kvcluster/node:dev", "sha256:ab12"),
            "kvcluster_node_dev_ab12"
        );
        assert_ne!(note_name("a:1", "sha256:1"), note_name("a:1", "sha256:2"));
    }
}
