//! Store nodes as plain processes: the operator's program prepares topics, schemas and assignment from the same manifest
//! as on Kubernetes, and says how each node is started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::args::LocalOptions;
use crate::build::own;
use crate::cache::Layout;
use crate::local::parts::{Part, log_file};
use crate::local::{kafka, postgres};
use crate::shell;

/// REST port of node 0; node i listens on this + i.
const REST_PORT: u16 = 18_080;
/// Admin port of node 0; node i listens on this + i.
const ADMIN_PORT: u16 = 19_180;
/// The manifest that `up` applies too.
pub const MANIFEST: &str = "charts/samples/demo.yaml";

/// One entry of the operator's `nodes.json`.
#[derive(Debug, Deserialize)]
struct Entry {
    id: u16,
    listen: String,
    admin_listen: String,
    env: BTreeMap<String, String>,
}

/// Lets the operator prepare everything, and describes the processes. It changes nothing that is prepared already.
pub fn prepare(layout: &Layout, programs: &Path, options: &LocalOptions) -> Result<Vec<Part>> {
    let mut command = operator(layout, programs, options)?;
    shell::run_logged(&mut command, &log_file(layout, "operator"))
        .context("the operator could not prepare Kafka and PostgreSQL")?;
    members(layout, programs)
}

/// The operator's program: it prepares what is missing, and moves replicas where nodes run.
pub fn operator(layout: &Layout, programs: &Path, options: &LocalOptions) -> Result<Command> {
    let folder = layout.run("local").join("operator");
    std::fs::create_dir_all(&folder)?;
    let mut command = shell::command(&[programs.join(own::OPERATOR)]);
    command
        .arg("local")
        .arg("--manifest")
        .arg(layout.source(MANIFEST))
        .arg("--out")
        .arg(&folder);
    let values = [
        ("--nodes", options.nodes.to_string()),
        ("--brokers", options.brokers.to_string()),
        ("--kafka", kafka::bootstrap(options.brokers)),
        ("--postgres", postgres::URL.to_owned()),
        ("--listen-base", REST_PORT.to_string()),
        ("--admin-base", ADMIN_PORT.to_string()),
    ];
    for (name, value) in values {
        command.args([name, &value]);
    }
    Ok(command)
}

/// The processes of the nodes that are members now.
pub fn members(layout: &Layout, programs: &Path) -> Result<Vec<Part>> {
    let file = layout.run("local").join("operator").join("nodes.json");
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let entries: Vec<Entry> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what the lab expects", file.display()))?;
    entries
        .into_iter()
        .map(|entry| part(layout, programs, entry))
        .collect()
}

/// Base URL of a node's probes.
pub fn admin_url(part: &Part) -> Option<String> {
    part.ports
        .get(1)
        .map(|port| format!("http://127.0.0.1:{port}"))
}

/// Base URL of a node's REST.
pub fn url(part: &Part) -> Option<String> {
    part.ports
        .first()
        .map(|port| format!("http://127.0.0.1:{port}"))
}

fn part(layout: &Layout, programs: &Path, entry: Entry) -> Result<Part> {
    let name = format!("node-{}", entry.id);
    let cwd: PathBuf = layout.run("local").join(&name);
    std::fs::create_dir_all(&cwd)?;
    Ok(Part {
        argv: vec![programs.join(own::NODE).display().to_string()],
        env: entry.env,
        log: log_file(layout, &name),
        ports: vec![port(&entry.listen)?, port(&entry.admin_listen)?],
        cwd,
        name,
        pid: None,
        started_ticks: None,
    })
}

fn port(address: &str) -> Result<u16> {
    let port = address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    port.with_context(|| format!("`{address}` is no address with a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_becomes_a_part() {
        let text = r#"[{"id":2,"listen":"127.0.0.1:18082","admin_listen":"127.0.0.1:19182","env":{"KVCLUSTER_NODE_ID":"2"}}]"#;
        let mut entries: Vec<Entry> = serde_json::from_str(text).expect("it is well-formed");
        let folder = std::env::temp_dir().join(format!("kvcluster-nodes-{}", std::process::id()));
        let layout = Layout::new(folder.clone(), PathBuf::new());
        let entry = entries.pop().expect("there is one");
        let part = part(&layout, Path::new("/programs"), entry).expect("its addresses have ports");
        assert_eq!(
            (part.name.as_str(), part.ports.as_slice()),
            ("node-2", &[18_082, 19_182][..])
        );
        assert_eq!(part.argv, ["/programs/kvcluster-node"]);
        assert_eq!(admin_url(&part).as_deref(), Some("http://127.0.0.1:19182"));
        crate::cache::remove(&folder).expect("the test's own folder can be removed");
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        assert!(port("127.0.0.1").is_err());
        assert_eq!(port("[::1]:80").expect("it has one"), 80);
    }
}
