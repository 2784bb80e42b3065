//! The container engine: the one that answers, or one that the lab runs itself where it is root.

pub mod capabilities;
pub mod daemon;
pub mod images;
pub mod rules;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Layout;
use crate::machine::{is_root, packages, tools};
use crate::progress::Progress;
use crate::shell;

/// An engine that answers.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The address of the lab's own engine; `None` for the one that programs find by themselves.
    host: Option<String>,
    program: PathBuf,
}

impl Engine {
    /// The engine that runs, if any: the lab's own first.
    pub fn running() -> Option<Self> {
        let program = tools::find("docker")?;
        let own = Self {
            host: Some(daemon::address()),
            program: program.clone(),
        };
        let other = Self {
            host: None,
            program,
        };
        [own, other].into_iter().find(Self::answers)
    }

    /// The engine that runs; starts one where the lab may.
    pub fn ensure(layout: &Layout, progress: &Progress) -> Result<Self> {
        if let Some(engine) = Self::running() {
            return Ok(engine);
        }
        daemon::ensure_installed(layout, progress)?;
        progress.step("start the container engine", |_| daemon::start(layout))?;
        Self::running().context("the engine was started and then answered no more")
    }

    /// Refuses where no engine runs and the lab may not start one.
    pub fn check_before() -> Result<()> {
        if !is_root() && Self::running().is_none() {
            bail!(
                "no container engine answers, and only root can start one: start Docker, or run \
                 `sudo cargo lab up`, or use `cargo lab local`, which needs none"
            );
        }
        Ok(())
    }

    /// Whether the lab started it.
    pub fn is_own(&self) -> bool {
        self.host.is_some()
    }

    /// The value of `DOCKER_HOST` that other programs need, if any.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// A command of the engine's client.
    pub fn docker(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words);
        self.point(&mut command);
        command
    }

    /// Makes another program (kind) use this engine.
    pub fn point(&self, command: &mut Command) {
        command.env("DOCKER_CLI_HINTS", "false");
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host);
        }
    }

    fn answers(&self) -> bool {
        shell::succeeds(&mut self.docker(&["version", "--format", "{{.Server.Version}}"]))
    }
}

/// Packages of an engine, each with a file that it brings.
const PACKAGES: [(&str, &str); 6] = [
    ("docker.io", "/usr/sbin/dockerd"),
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("iptables", "/usr/sbin/iptables"),
    ("iproute2", "/usr/bin/ip"),
    ("jq", "/usr/bin/jq"),
];

fn install(layout: &Layout) -> Result<()> {
    packages::ensure(layout, &PACKAGES)
        .context("no container engine answers, and none can be installed")
}
