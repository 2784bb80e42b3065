//! Changes the number of store nodes while they run: the operator's program plans and moves, and says in `nodes.json` who is a
//! member; this starts who joins and stops who has left.

use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::args::LocalOptions;
use crate::build::own;
use crate::cache::{self, Layout};
use crate::local::nodes;
use crate::local::parts::{Lab, Part, log_file};
use crate::progress::Progress;
use crate::shell;

/// Time between two looks at the members and at the operator.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs until there are so many nodes, and every replica is where it belongs.
pub fn run(layout: &Layout, progress: &Progress, count: u16) -> Result<()> {
    let lab = Lab::load(layout)?;
    let brokers = lab.count("kafka-");
    let program = lab.parts.iter().find(|part| part.name.starts_with("node-"));
    let program = program.context("no store nodes run: `cargo lab local` first")?;
    let programs = Path::new(&program.argv[0]).parent();
    let programs = programs.context("a program has a folder")?.to_owned();
    ensure!(
        programs.join(own::OPERATOR).exists(),
        "the operator's program is not built: `cargo lab local` first"
    );
    let options = LocalOptions {
        nodes: count,
        brokers,
        only_services: false,
        small_disks: false,
    };
    progress.step(&format!("scale to {count} nodes"), |step| {
        let mut operator = nodes::operator(layout, &programs, &options)?;
        let log = log_file(layout, "operator");
        let file = shell::open_log(&log)?;
        operator
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let mut operator = operator.spawn().context("cannot start the operator")?;
        let followed = follow(layout, &programs, &mut operator, |what| step.detail(what));
        let followed = followed.with_context(|| format!("log {}", log.display()));
        if followed.is_err() {
            // It is of no use without somebody who starts its nodes.
            let _ = operator.kill();
            let _ = operator.wait();
        }
        followed
    })
}

fn follow(
    layout: &Layout,
    programs: &Path,
    operator: &mut Child,
    tell: impl Fn(&str),
) -> Result<()> {
    loop {
        let ended = operator.try_wait()?;
        // Once more after its end: the last member that left is stopped too.
        let members = nodes::members(layout, programs)?;
        for name in bring_members(layout, members)? {
            tell(&name);
        }
        match ended {
            None => thread::sleep(LOOK_EVERY),
            Some(status) if status.success() => return Ok(()),
            Some(_) => bail!("the operator gave up"),
        }
    }
}

/// Starts members that do not run yet, and stops nodes that are members no more; their names.
fn bring_members(layout: &Layout, members: Vec<Part>) -> Result<Vec<String>> {
    let _lock = layout.lock(cache::LOCAL)?;
    let mut lab = Lab::load(layout)?;
    let is_member = |part: &Part| members.iter().any(|member| member.name == part.name);
    let left: Vec<Part> = lab
        .parts
        .extract_if(.., |part| {
            part.name.starts_with("node-") && !is_member(part)
        })
        .collect();
    let mut changed: Vec<String> = left.iter().map(|part| part.name.clone()).collect();
    for part in left {
        part.stop()?;
    }
    for mut member in members {
        if lab.parts.iter().all(|known| known.name != member.name) {
            member.start()?;
            changed.push(member.name.clone());
            lab.parts.push(member);
        }
    }
    if !changed.is_empty() {
        lab.save(layout)?;
    }
    Ok(changed)
}
