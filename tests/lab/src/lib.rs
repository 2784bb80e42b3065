//! The lab: brings up Kubernetes, Kafka, PostgreSQL and the store on one machine, runs every suite against them, and
//! takes it all down again without a trace.
//!
//! ```text
//! args → commands: up    = machine → engine → build → cluster → deploy
//!                  local = machine → build → local
//!                  test  = suites (each brings up what it needs) · status · down · start · kill
//! ```
//! It only calls programs (docker, kind, kubectl, helm, go, mvn, cargo, psql) and holds no client library, so that it
//! compiles in seconds. What it builds is kept in the user's cache, keyed by its inputs; see [`cache`].

pub mod args;
pub mod build;
pub mod cache;
pub mod cluster;
pub mod deploy;
pub mod down;
pub mod engine;
pub mod local;
pub mod machine;
pub mod progress;
pub mod shell;
pub mod smoke;
pub mod status;
pub mod suites;
pub mod up;

use anyhow::Result;

use crate::args::{Args, Command};
use crate::cache::Layout;
use crate::progress::Progress;

/// Runs one command; `false` means that it ran and found something wrong.
pub fn run(args: Args) -> Result<bool> {
    let layout = Layout::from_environment()?;
    let progress = Progress::detect();
    match args.command {
        Command::Up => up::run(&layout, &progress).map(|()| true),
        Command::Local(options) => local::up(&layout, &progress, &options).map(|()| true),
        Command::Status { json, mode } => status::print(&layout, json, mode).map(|()| true),
        Command::Test { long, only } => suites::run(&layout, &progress, long, &only),
        Command::Bench { arguments } => suites::bench(&layout, &progress, &arguments),
        Command::Start { name } => local::start_part(&layout, &progress, &name).map(|()| true),
        Command::Scale { nodes } => local::scale::run(&layout, &progress, nodes).map(|()| true),
        Command::Kill { name, signal } => local::kill_part(&layout, &name, &signal).map(|()| true),
        Command::Cut {
            name,
            from,
            answers,
        } => local::cut_part(&layout, &name, &from, answers).map(|()| true),
        Command::Nodes { program, env } => local::restart_nodes(
            &layout,
            program.as_deref().unwrap_or(build::own::NODE),
            env.as_deref(),
        )
        .map(|()| true),
        Command::Fill { name, undo } => local::fill_part(&layout, &name, undo).map(|()| true),
        Command::Heal => {
            println!("{} packets were dropped", local::cuts::heal()?);
            Ok(true)
        }
        Command::Worker { change, name } => {
            cluster::worker::run(&layout, &progress, change, &name).map(|()| true)
        }
        Command::Down { only } => down::run(&layout, &progress, only).map(|()| true),
    }
}
