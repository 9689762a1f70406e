//! What the EndpointSlices of a Service show of its pods.

use std::{
    collections::{BTreeSet, HashSet},
    error::Error,
    fmt,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointPort, EndpointSlice};

/// A pod that takes requests, or ends those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Whether it's terminating, and still serves.
    pub(crate) is_draining: bool,
}

/// Which port of the pods gets the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// The Service's only one.
    Only,
    /// The one that has this name in the Service. Its number may differ from pod to pod.
    Name(String),
    /// The pods' own number, which is the Service's `targetPort`.
    Number(u16),
}

impl From<&str> for Port {
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(number) => Self::Number(number),
            Err(_) => Self::Name(text.to_owned()),
        }
    }
}

impl Port {
    /// Returns the number of the port in a slice. `None` if the slice doesn't have it.
    fn number(&self, slice: &EndpointSlice) -> Option<u16> {
        let mut ports = tcp_ports(slice);
        let port = match self {
            Self::Only => ports.next().filter(|_| ports.next().is_none()),
            Self::Name(name) => ports.find(|port| port.name.as_deref().unwrap_or_default() == name),
            // A slice that isn't of a Service may leave the number open.
            Self::Number(number) => {
                return ports.any(|port| port.port.is_none_or(|port| port == i32::from(*number))).then_some(*number);
            }
        };
        u16::try_from(port?.port?).ok().filter(|&number| number > 0)
    }
}

fn tcp_ports(slice: &EndpointSlice) -> impl Iterator<Item = &EndpointPort> {
    slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
}

/// The pods have no such port, so that there is a mistake in the configuration.
#[derive(Debug)]
pub(crate) struct NoSuchPort(String);

impl fmt::Display for NoSuchPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NoSuchPort {}

/// What the conditions of an endpoint show. The first one counts if slices contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Ready,
    Draining,
    Out,
}

impl Condition {
    /// As the API's documentation reads the conditions that are left out.
    fn of(conditions: Option<&EndpointConditions>) -> Self {
        let condition = |of: fn(&EndpointConditions) -> Option<bool>| conditions.and_then(of);
        let is_ready = condition(|conditions| conditions.ready).unwrap_or(true);
        let is_serving = condition(|conditions| conditions.serving).unwrap_or(is_ready);
        let is_terminating = condition(|conditions| conditions.terminating).unwrap_or(false);
        match (is_ready, is_serving, is_terminating) {
            // A terminating pod is ready only if the Service has `publishNotReadyAddresses`, which wants that.
            (true, ..) => Self::Ready,
            (false, true, true) => Self::Draining,
            (false, ..) => Self::Out,
        }
    }
}

/// Returns the endpoints of a Service, of which these are all slices, in the order of their addresses.
///
/// A pod is one endpoint: slices overlap while the control plane moves endpoints from one to another, and a pod with
/// addresses of both families is in slices of both. Its IPv4 address is the one that counts.
pub(crate) fn endpoints<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: &Port,
) -> Result<Vec<Endpoint>, NoSuchPort> {
    let mut found = Vec::new();
    let (mut has_port, mut others) = (false, BTreeSet::new());
    for slice in slices {
        // Domain names have no defined meaning there.
        if !matches!(&*slice.address_type, "IPv4" | "IPv6") || slice.endpoints.is_empty() {
            continue;
        }
        let Some(number) = port.number(slice) else {
            others.extend(tcp_ports(slice).map(description));
            continue;
        };
        has_port = true;
        for endpoint in &slice.endpoints {
            // The addresses of one endpoint are interchangeable.
            let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()) else {
                continue;
            };
            let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.as_deref());
            found.push((ip.is_ipv6(), Condition::of(endpoint.conditions.as_ref()), SocketAddr::new(ip, number), pod));
        }
    }
    if !has_port && !others.is_empty() {
        return Err(NoSuchPort(format!(
            "the port of the pods is {}: write one of {}",
            match port {
                Port::Only => "not given, and they have several".to_owned(),
                Port::Name(name) => format!("{name:?}, which they don't have"),
                Port::Number(number) => format!("{number}, which they don't have"),
            },
            others.into_iter().collect::<Vec<_>>().join(", ")
        )));
    }
    found.sort_unstable();
    let (mut addresses, mut pods) = (HashSet::new(), HashSet::new());
    let mut endpoints: Vec<_> = found
        .into_iter()
        .filter(|&(_, _, address, pod)| addresses.insert(address) & pod.is_none_or(|pod| pods.insert(pod)))
        .filter(|&(_, condition, ..)| condition != Condition::Out)
        .map(|(_, condition, address, _)| Endpoint { address, is_draining: condition == Condition::Draining })
        .collect();
    endpoints.sort_unstable();
    Ok(endpoints)
}

fn description(port: &EndpointPort) -> String {
    let number = port.port.map(|number| number.to_string());
    match port.name.as_deref() {
        None | Some("") => number.unwrap_or_else(|| "any number".to_owned()),
        Some(name) => format!("{name:?} ({})", number.as_deref().unwrap_or("any number")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A slice with one port, `http`.
    fn slice(family: &str, port: u16, endpoints: Value) -> EndpointSlice {
        with_ports(family, json!([{ "name": "http", "port": port, "protocol": "TCP" }]), endpoints)
    }

    fn with_ports(family: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        let slice =
            json!({ "metadata": { "name": "x" }, "addressType": family, "ports": ports, "endpoints": endpoints });
        serde_json::from_value(slice).unwrap()
    }

    /// The addresses, those that drain with a `-`.
    fn found(slices: &[EndpointSlice], port: &Port) -> Vec<String> {
        let name = |endpoint: Endpoint| format!("{}{}", if endpoint.is_draining { "-" } else { "" }, endpoint.address);
        endpoints(slices, port).unwrap().into_iter().map(name).collect()
    }

    fn refused(slices: &[EndpointSlice], port: &Port) -> String {
        endpoints(slices, port).unwrap_err().to_string()
    }

    #[test]
    fn the_conditions_decide_whether_a_pod_gets_requests() {
        let cases = [
            (Value::Null, "10.0.0.1:80"),
            (json!({}), "10.0.0.1:80"),
            (json!({ "ready": true }), "10.0.0.1:80"),
            (json!({ "ready": true, "serving": true, "terminating": false }), "10.0.0.1:80"),
            (json!({ "serving": true, "terminating": false }), "10.0.0.1:80"),
            // `publishNotReadyAddresses`.
            (json!({ "ready": true, "serving": false, "terminating": true }), "10.0.0.1:80"),
            (json!({ "ready": false, "serving": true, "terminating": true }), "-10.0.0.1:80"),
            (json!({ "ready": false }), ""),
            (json!({ "ready": false, "serving": false }), ""),
            (json!({ "ready": false, "serving": true }), ""),
            (json!({ "ready": false, "terminating": true }), ""),
            (json!({ "ready": false, "serving": false, "terminating": true }), ""),
        ];
        for (conditions, expected) in cases {
            let endpoint = json!([{ "addresses": ["10.0.0.1"], "conditions": conditions }]);
            assert_eq!(found(&[slice("IPv4", 80, endpoint)], &Port::Only).join(" "), expected, "{conditions}");
        }
    }

    #[test]
    fn slices_are_merged_and_each_address_is_one_endpoint() {
        let ready = json!({ "ready": true });
        let terminating = json!({ "ready": false, "serving": true, "terminating": true });
        let slices = [
            slice(
                "IPv4",
                80,
                json!([{ "addresses": ["10.0.0.2"] }, { "addresses": ["10.0.0.1"], "conditions": ready }]),
            ),
            slice("IPv4", 80, json!([{ "addresses": ["10.0.0.1"], "conditions": terminating }])),
            // The pods of another version have another number under the same name.
            slice("IPv4", 81, json!([{ "addresses": ["10.0.0.1"] }, { "addresses": ["10.0.0.3", "10.9.9.9"] }])),
        ];
        let all = ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "10.0.0.3:81"];
        assert_eq!(found(&slices, &Port::from("http")), all);
        let reversed: Vec<_> = slices.iter().rev().cloned().collect();
        assert_eq!(found(&reversed, &Port::from("http")), all, "the order of the slices decides nothing");
        assert_eq!(found(&slices, &Port::from("81")), ["10.0.0.1:81", "10.0.0.3:81"]);
    }

    #[test]
    fn a_pod_with_two_addresses_is_one_endpoint() {
        let pod = |address: &str, uid: &str, is_ready: bool| {
            let conditions = json!({ "ready": is_ready });
            json!({ "addresses": [address], "conditions": conditions, "targetRef": { "kind": "Pod", "uid": uid } })
        };
        let slices = [
            slice("IPv6", 80, json!([pod("fd00::1", "1", true), pod("fd00::2", "2", true), pod("fd00::3", "3", true)])),
            slice("IPv4", 80, json!([pod("10.0.0.1", "1", true), pod("10.0.0.2", "2", false)])),
        ];
        // While one slice is updated and the other one isn't, the pod doesn't become another one.
        assert_eq!(found(&slices, &Port::Only), ["10.0.0.1:80", "[fd00::3]:80"]);
        assert_eq!(found(&slices[..1], &Port::Only), ["[fd00::1]:80", "[fd00::2]:80", "[fd00::3]:80"]);
    }

    #[test]
    fn a_port_is_found_by_its_name_or_number() {
        let ports = json!([
            { "name": "http", "port": 8080 },
            { "name": "metrics", "port": 9090, "protocol": "TCP" },
            { "name": "dns", "port": 53, "protocol": "UDP" },
        ]);
        let slices = [with_ports("IPv4", ports, json!([{ "addresses": ["10.0.0.1"] }]))];
        assert_eq!(found(&slices, &Port::from("metrics")), ["10.0.0.1:9090"]);
        assert_eq!(found(&slices, &Port::from("8080")), ["10.0.0.1:8080"]);
        for (port, text) in [
            (Port::Only, "not given, and they have several: write one of \"http\" (8080), \"metrics\" (9090)"),
            (Port::from("web"), "\"web\", which they don't have: write one of \"http\" (8080), \"metrics\" (9090)"),
            (Port::from("53"), "53, which they don't have: write one of \"http\" (8080), \"metrics\" (9090)"),
        ] {
            assert_eq!(refused(&slices, &port), format!("the port of the pods is {text}"));
        }
        let unnamed = [with_ports("IPv4", json!([{ "port": 8080 }]), json!([{ "addresses": ["10.0.0.1"] }]))];
        assert_eq!(found(&unnamed, &Port::Only), ["10.0.0.1:8080"]);
        assert_eq!(found(&unnamed, &Port::from("8080")), ["10.0.0.1:8080"]);
        let open = [with_ports("IPv4", json!([{}]), json!([{ "addresses": ["10.0.0.1"] }]))];
        assert_eq!(found(&open, &Port::from("8080")), ["10.0.0.1:8080"]);
    }

    #[test]
    fn what_has_no_usable_address_or_port_is_left_out() {
        let endpoints = json!([{ "addresses": [] }, { "addresses": ["pod-1"] }, { "addresses": ["10.0.0.1"] }]);
        assert_eq!(found(&[slice("IPv4", 80, endpoints.clone())], &Port::Only), ["10.0.0.1:80"]);
        assert!(found(&[slice("FQDN", 80, endpoints.clone())], &Port::Only).is_empty());
        // The slice of a Service without pods.
        assert!(found(&[with_ports("IPv4", Value::Null, json!([]))], &Port::from("http")).is_empty());
        assert!(
            found(&[with_ports("IPv4", json!([{ "name": "http", "port": 80 }]), json!([]))], &Port::from("x"))
                .is_empty()
        );
        for number in [json!(0), json!(-1), json!(65_536), Value::Null] {
            let slices = [with_ports("IPv4", json!([{ "name": "http", "port": number }]), endpoints.clone())];
            assert!(refused(&slices, &Port::from("http")).contains("write one of"), "{number}");
        }
        assert!(found(&[], &Port::Only).is_empty());
    }
}
