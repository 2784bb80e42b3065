//! What runs and where, for people and for tests.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::cache::Layout;
use crate::cluster::Cluster;
use crate::local::parts::{Lab, Part};
use crate::local::{nodes, postgres};
use crate::{deploy, shell};

/// What the lab runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A kind cluster.
    Kind,
    /// Plain processes.
    Local,
    /// Nothing.
    #[value(skip)]
    None,
}

/// The shape of `cargo lab status --json`; absent parts are null.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What runs.
    pub mode: Mode,
    /// Credentials for the cluster.
    pub kubeconfig: Option<String>,
    /// Base URL of the store.
    pub service: Option<String>,
    /// Bootstrap addresses.
    pub kafka: Option<String>,
    /// URL of the administrator's connection.
    pub postgres: Option<String>,
    /// `DOCKER_HOST` for the engine that the cluster's nodes run in; null where the default works.
    pub docker_host: Option<String>,
    /// The store's nodes.
    pub nodes: Vec<NodeStatus>,
}

/// One node of the store.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// The node's number.
    pub id: u16,
    /// Base URL of REST.
    pub url: Option<String>,
    /// Base URL of probes and metrics.
    pub admin_url: Option<String>,
    /// The process, in mode `local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The pod, in mode `kind`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// Prints the status of what runs; `only` decides where both do, else it is the cluster.
pub fn print(layout: &Layout, json: bool, only: Option<Mode>) -> Result<()> {
    let status = of(layout, only)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}{}", text(&status), stopped(&Lab::load(layout)?));
    }
    Ok(())
}

fn of(layout: &Layout, only: Option<Mode>) -> Result<Status> {
    if only.is_none_or(|mode| mode == Mode::Kind)
        && let Some(cluster) = Cluster::running(layout)
    {
        return of_cluster(&cluster);
    }
    let lab = if only == Some(Mode::Kind) {
        Lab::default()
    } else {
        Lab::load(layout)?
    };
    Ok(of_local(&lab))
}

fn of_cluster(cluster: &Cluster) -> Result<Status> {
    let words = ["get", "pods", "-l", deploy::NODE_SELECTOR, "-o", "json"];
    let pods: Value = serde_json::from_str(&shell::output(&mut cluster.kubectl(&words))?)?;
    Ok(Status {
        mode: Mode::Kind,
        kubeconfig: Some(cluster.kubeconfig().display().to_string()),
        service: Some(deploy::SERVICE_URL.to_owned()),
        kafka: Some(deploy::KAFKA.to_owned()),
        postgres: Some(deploy::POSTGRES_URL.to_owned()),
        docker_host: cluster.engine.host().map(str::to_owned),
        nodes: pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(pod)
            .collect(),
    })
}

/// A node in the cluster. Its URLs are those of its pod: they work inside the cluster only.
fn pod(item: &Value) -> Option<NodeStatus> {
    let id = item["metadata"]["labels"]["kvcluster.dev/node"]
        .as_str()?
        .parse()
        .ok()?;
    let url = |port: u16| {
        item["status"]["podIP"]
            .as_str()
            .map(|ip| format!("http://{ip}:{port}"))
    };
    let name = item["metadata"]["name"].as_str()?.to_owned();
    Some(NodeStatus {
        id,
        url: url(8_080),
        admin_url: url(9_090),
        pid: None,
        pod: Some(name),
    })
}

/// The status of `local`.
pub fn of_local(lab: &Lab) -> Status {
    let nodes: Vec<NodeStatus> = lab.parts.iter().filter_map(node).collect();
    Status {
        mode: if lab.parts.is_empty() {
            Mode::None
        } else {
            Mode::Local
        },
        kubeconfig: None,
        service: nodes.first().and_then(|node| node.url.clone()),
        kafka: (!lab.parts.is_empty()).then(|| lab.kafka()),
        postgres: (!lab.parts.is_empty()).then(|| postgres::URL.to_owned()),
        docker_host: None,
        nodes,
    }
}

fn node(part: &Part) -> Option<NodeStatus> {
    let id = part.name.strip_prefix("node-")?.parse().ok()?;
    let pid = part.pid.filter(|_| part.is_running());
    Some(NodeStatus {
        id,
        url: nodes::url(part),
        admin_url: nodes::admin_url(part),
        pid,
        pod: None,
    })
}

/// The services of `local` that were killed and not started again.
fn stopped(lab: &Lab) -> String {
    let services = lab
        .parts
        .iter()
        .filter(|part| !part.name.starts_with("node-"));
    let stopped = services.filter(|part| !part.is_running());
    let lines = stopped.map(|Part { name, .. }| {
        format!("{name} does not run: `cargo lab start {name}` starts it\n")
    });
    lines.collect::<Vec<_>>().concat()
}

fn text(status: &Status) -> String {
    let mut lines = vec![match status.mode {
        Mode::Kind => "a kind cluster runs".to_owned(),
        Mode::Local => "local processes run".to_owned(),
        Mode::None => "nothing runs: `cargo lab up` or `cargo lab local` starts it".to_owned(),
    }];
    let fields = [
        ("kubeconfig", &status.kubeconfig),
        ("service", &status.service),
        ("kafka", &status.kafka),
        ("postgres", &status.postgres),
    ];
    for (name, value) in fields {
        lines.extend(value.iter().map(|value| format!("{name:<11} {value}")));
    }
    for node in &status.nodes {
        let place = match (&node.pod, node.pid) {
            (Some(pod), _) => format!("pod {pod}"),
            (None, Some(pid)) => format!("process {pid}"),
            (None, None) => "does not run".to_owned(),
        };
        let url = node.url.as_deref().unwrap_or("-");
        lines.push(format!(
            "{:<11} {url} ({place})",
            format!("node {}", node.id)
        ));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs() {
        let status = of_local(&Lab::default());
        assert_eq!(
            serde_json::to_string(&status).expect("it serializes"),
            r#"{"mode":"none","kubeconfig":null,"service":null,"kafka":null,"postgres":null,"docker_host":null,"nodes":[]}"#
        );
        assert!(text(&status).starts_with("nothing runs"));
    }

    #[test]
    fn local_names_every_part() {
        let json = r#"{"parts":[
            {"name":"kafka-0","argv":["x"],"env":{},"cwd":"/","log":"/l","ports":[19092],"pid":null,"started_ticks":null},
            {"name":"node-0","argv":["x"],"env":{},"cwd":"/","log":"/l","ports":[18080,19180],"pid":null,"started_ticks":null}
        ]}"#;
        let status = of_local(&serde_json::from_str(json).expect("it is a lab"));
        assert_eq!(
            serde_json::to_value(&status).expect("it serializes"),
            serde_json::json!({
                "mode": "local",
                "kubeconfig": null,
                "service": "http://127.0.0.1:18080",
                "kafka": "127.0.0.1:19092",
                "postgres": "postgres://postgres:postgres@127.0.0.1:15432/postgres",
                "docker_host": null,
                "nodes": [{"id": 0, "url": "http://127.0.0.1:18080", "admin_url": "http://127.0.0.1:19180"}],
            })
        );
        let lab: Lab = serde_json::from_str(json).expect("it is a lab");
        assert_eq!(
            stopped(&lab),
            "kafka-0 does not run: `cargo lab start kafka-0` starts it\n"
        );
        assert!(text(&status).contains("node 0      http://127.0.0.1:18080 (does not run)"));
    }

    #[test]
    fn a_pod_is_a_node() {
        let item = serde_json::json!({
            "metadata": { "name": "demo-1-0", "labels": { "kvcluster.dev/node": "1" } },
            "status": { "podIP": "10.244.1.7" },
        });
        let node = pod(&item).expect("it is labelled");
        assert_eq!((node.id, node.pod.as_deref()), (1, Some("demo-1-0")));
        assert_eq!(node.admin_url.as_deref(), Some("http://10.244.1.7:9090"));
        assert!(pod(&serde_json::json!({ "metadata": { "name": "x" } })).is_none());
    }
}
