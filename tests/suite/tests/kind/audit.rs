//! What the API server wrote down of the operator's requests: each once it is answered, a watch when it begins and when it ends.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use kvcluster_suite::lab::Lab;
use serde_json::Value;

const LOG: &str = "/var/log/kubernetes/audit.log";
const CONTROL_PLANE: &str = "kvcluster-control-plane";

/// A right: the group and the resource with its subresource, and the verb.
pub(crate) type Right = (String, String, String);

/// One request that was answered.
pub(crate) struct Request {
    pub(crate) right: Right,
    /// The object's namespace and name.
    pub(crate) object: String,
    pub(crate) code: u64,
    pub(crate) is_forbidden: bool,
}

impl Request {
    /// Whether it asks for a change.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self.right.2.as_str(), "get" | "list" | "watch")
    }

    /// A write of the Lease by which an operator says that it lives.
    pub(crate) fn is_sign_of_life(&self) -> bool {
        self.right.1 == "leases"
    }

    /// The rights that it took: an apply that makes the object takes two.
    pub(crate) fn rights(&self) -> BTreeSet<Right> {
        let (group, resource, verb) = self.right.clone();
        let made = verb == "patch" && self.code == 201;
        let more = made.then(|| (group.clone(), resource.clone(), "create".to_owned()));
        more.into_iter().chain([(group, resource, verb)]).collect()
    }
}

/// All requests of the operator so far.
pub(crate) fn requests(lab: &Lab) -> Result<Vec<Request>> {
    let text = lab.docker(&["exec", CONTROL_PLANE, "cat", LOG])?;
    let parsed = text.lines().filter(|line| !line.is_empty()).map(|line| {
        let event: Value =
            serde_json::from_str(line).with_context(|| format!("no event: {line}"))?;
        Ok(request(&event))
    });
    let all: Result<Vec<Option<Request>>> = parsed.collect();
    Ok(all?.into_iter().flatten().collect())
}

/// None for what asks for no object, such as the server's version.
fn request(event: &Value) -> Option<Request> {
    let of = &event["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = match of["subresource"].as_str() {
        Some(part) => format!("{}/{part}", of["resource"].as_str()?),
        None => text(&of["resource"]),
    };
    of["resource"].as_str()?;
    Some(Request {
        right: (text(&of["apiGroup"]), resource, text(&event["verb"])),
        object: format!("{}/{}", text(&of["namespace"]), text(&of["name"])),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        is_forbidden: event["annotations"]["authorization.k8s.io/decision"] == "forbid",
    })
}
