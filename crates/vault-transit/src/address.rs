//! Addresses that are never connected to, whether a URL names them or a name resolves to them.
//!
//! A base URL is an administrator's input, and a node may stand where its requests reach what
//! the administrator can't: above all the metadata services of clouds, at link-local addresses.

use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Name, Resolve, Resolving};

/// Whether no Vault can be at this address: link-local (RFC 3927, RFC 4291), unspecified or
/// multicast, also as an IPv4 address inside an IPv6 one.
pub(crate) fn is_refused(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
        }
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
    }
}

/// A name resolves to nothing that may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusedAddress {
    #[error("the name resolves to link-local, unspecified or multicast addresses only")]
    NoVaultThere,
    #[error("plain http is for this machine, and the name resolves to another")]
    BeyondLoopback,
}

/// The system's resolver, without the addresses that are refused.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) loopback_only: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let loopback_only = self.loopback_only;
        Box::pin(async move {
            // The port is replaced by the URL's.
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let admitted = admit(found, loopback_only)?;
            Ok(Box::new(admitted.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

fn admit(
    mut found: Vec<SocketAddr>,
    loopback_only: bool,
) -> Result<Vec<SocketAddr>, RefusedAddress> {
    found.retain(|address| !is_refused(address.ip()));
    if found.is_empty() {
        return Err(RefusedAddress::NoVaultThere);
    }
    found.retain(|address| !loopback_only || address.ip().to_canonical().is_loopback());
    if found.is_empty() { Err(RefusedAddress::BeyondLoopback) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn what_a_name_may_resolve_to() {
        let inside =
            ["169.254.169.254", "fe80::1", "::ffff:169.254.1.1", "0.0.0.0", "::", "ff02::1"];
        assert_eq!(admit(addresses(&inside), false), Err(RefusedAddress::NoVaultThere));
        let mixed = addresses(&["169.254.169.254", "10.0.0.7", "127.0.0.1"]);
        assert_eq!(admit(mixed.clone(), false), Ok(addresses(&["10.0.0.7", "127.0.0.1"])));
        assert_eq!(admit(mixed, true), Ok(addresses(&["127.0.0.1"])));
        assert_eq!(admit(addresses(&["10.0.0.7"]), true), Err(RefusedAddress::BeyondLoopback));
        assert_eq!(admit(addresses(&["::1"]), true), Ok(addresses(&["::1"])));
    }
}
