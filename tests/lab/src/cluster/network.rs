//! The pods' network of a cluster whose node image brings none: on each node a point-to-point plug-in for its own range,
//! and a route to every other node's range.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::shell;

/// How long the control plane may take to give every node its range.
const RANGE_LIMIT: Duration = Duration::from_mins(2);

const CONFIGURATION: &str = "/etc/cni/net.d/10-lab.conflist";

/// Whether the node's network is made here, and not by something of its image.
pub fn is_ours(cluster: &Cluster, node: &str) -> Result<bool> {
    let look = [
        "exec",
        node,
        "find",
        "/etc/cni/net.d",
        "-path",
        CONFIGURATION,
    ];
    let found = shell::output(&mut cluster.engine.docker(&look))?;
    Ok(!found.trim().is_empty())
}

/// Whether Kubernetes knows the address that the node's container has now.
pub fn address_is_known(cluster: &Cluster, node: &str) -> Result<bool> {
    let template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let now = shell::output(&mut cluster.engine.docker(&["inspect", "-f", template, node]))?;
    let nodes = node_ranges(&nodes(cluster)?).unwrap_or_default();
    let known = nodes.into_iter().find(|known| known.name == node);
    Ok(known.is_some_and(|known| known.address == now.trim()))
}

fn nodes(cluster: &Cluster) -> Result<Value> {
    let listed = shell::output(&mut cluster.kubectl(&["get", "nodes", "-o", "json"]))?;
    serde_json::from_str(&listed).context("kubectl printed no JSON")
}

/// Puts configuration and routes into every node.
pub fn configure(cluster: &Cluster) -> Result<()> {
    let count = cluster.nodes()?.len();
    let nodes = shell::wait_for(
        "a range of pod addresses for every node",
        RANGE_LIMIT,
        || {
            let nodes = node_ranges(&nodes(cluster)?);
            Ok(nodes.filter(|nodes| nodes.len() == count))
        },
    )?;
    for node in &nodes {
        let script = format!("mkdir -p /etc/cni/net.d && cat > {CONFIGURATION}");
        let words = ["exec", "-i", &node.name, "sh", "-c", &script];
        shell::output_of_input(&mut cluster.engine.docker(&words), &plugins(&node.range))
            .with_context(|| format!("cannot configure the network of {}", node.name))?;
        for other in nodes.iter().filter(|other| other.name != node.name) {
            let route = [
                "exec",
                &node.name,
                "ip",
                "route",
                "replace",
                &other.range,
                "via",
                &other.address,
            ];
            shell::output(&mut cluster.engine.docker(&route))?;
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: String,
    range: String,
    address: String,
}

/// Every node with its range; `None` while one has none yet.
fn node_ranges(list: &Value) -> Option<Vec<Node>> {
    let node = |item: &Value| {
        let addresses = item["status"]["addresses"].as_array()?;
        let internal = addresses
            .iter()
            .find(|address| address["type"] == "InternalIP")?;
        Some(Node {
            name: item["metadata"]["name"].as_str()?.to_owned(),
            range: item["spec"]["podCIDR"].as_str()?.to_owned(),
            address: internal["address"].as_str()?.to_owned(),
        })
    };
    list["items"].as_array()?.iter().map(node).collect()
}

fn plugins(range: &str) -> String {
    let addresses = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": range }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let configuration = json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [
            { "type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": addresses },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    configuration.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, range: Option<&str>) -> Value {
        let addresses = json!([
            { "type": "Hostname", "address": name },
            { "type": "InternalIP", "address": "172.18.0.2" },
        ]);
        let mut item = json!({ "metadata": { "name": name }, "spec": {}, "status": { "addresses": addresses } });
        if let Some(range) = range {
            item["spec"]["podCIDR"] = json!(range);
        }
        item
    }

    #[test]
    fn nodes_count_once_all_have_a_range() {
        let ready = json!({ "items": [item("a", Some("10.244.0.0/24"))] });
        let expected = Node {
            name: "a".to_owned(),
            range: "10.244.0.0/24".to_owned(),
            address: "172.18.0.2".to_owned(),
        };
        assert_eq!(node_ranges(&ready), Some(vec![expected]));
        let early = json!({ "items": [item("a", Some("10.244.0.0/24")), item("b", None)] });
        assert_eq!(node_ranges(&early), None);
    }

    #[test]
    fn the_plugins_use_the_nodes_range() {
        let value: Value = serde_json::from_str(&plugins("10.244.1.0/24")).expect("it is JSON");
        assert_eq!(
            value["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.1.0/24"
        );
    }
}
