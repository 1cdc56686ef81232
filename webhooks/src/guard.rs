//! Which addresses a webhook may be sent to: public ones, and those an operator allows by name for
//! local runs. Everything the IANA special-purpose registries set apart is refused, also where an
//! IPv6 address merely wraps such an IPv4 one (mapped, NAT64, 6to4); and of IPv6, everything but
//! the block that global unicast addresses are given from.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// The one block of IPv6 that global unicast addresses are given from (IANA, RFC 4291).
const GLOBAL_UNICAST: &str = "2000::/3";
/// Special-purpose blocks (IANA registries of RFC 6890 and later, multicast, broadcast); of IPv6,
/// those within [`GLOBAL_UNICAST`].
const FORBIDDEN: [&str; 22] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "2001::/23",
    "2001:db8::/32",
    "2620:4f:8000::/48",
    "3fff::/20",
];

/// Decides about addresses.
#[derive(Clone, Debug)]
pub struct Guard {
    global_unicast: IpNet,
    forbidden: Vec<IpNet>,
    allowed: Vec<IpNet>,
}

/// Why a URL or address was refused; deterministic, so never retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The URL is not one that webhooks can be sent to.
    #[error("{0}")]
    Url(&'static str),
    /// The host's address is not public.
    #[error("the address {0} is not public")]
    Address(IpAddr),
}

impl Guard {
    /// Refuses every address that is not public, except those in `allowed`.
    #[must_use]
    pub fn new(allowed: Vec<IpNet>) -> Self {
        let parse = |text: &str| text.parse().expect("the constants are networks");
        Self {
            global_unicast: parse(GLOBAL_UNICAST),
            forbidden: FORBIDDEN.into_iter().map(parse).collect(),
            allowed,
        }
    }

    /// Whether an address may be dialled.
    ///
    /// # Errors
    /// [`Refusal::Address`] when not.
    pub fn check(&self, address: IpAddr) -> Result<(), Refusal> {
        let meant = unwrap(address);
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&meant));
        let public =
            (meant.is_ipv4() || self.global_unicast.contains(&meant)) && !within(&self.forbidden);
        if public || within(&self.allowed) {
            Ok(())
        } else {
            Err(Refusal::Address(address))
        }
    }

    /// Whether webhooks may be sent to a URL, as far as its text tells: `https` (or `http` to an
    /// allowed address), no credentials, no forbidden address. Names are checked when resolved.
    ///
    /// # Errors
    /// [`Refusal`] when not.
    pub fn check_url(&self, url: &Url) -> Result<(), Refusal> {
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
            Some(Host::Domain(name)) if !name.is_empty() => None,
            _ => return Err(Refusal::Url("the URL has no host")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Url(
                "the URL must not hold a user name or password",
            ));
        }
        if let Some(address) = literal {
            self.check(address)?;
        }
        let explicitly_allowed =
            literal.is_some_and(|ip| self.allowed.iter().any(|net| net.contains(&unwrap(ip))));
        match url.scheme() {
            "https" => Ok(()),
            "http" if explicitly_allowed => Ok(()),
            _ => Err(Refusal::Url("the URL must begin with https://")),
        }
    }
}

/// The IPv4 address that an IPv6 one stands for, where it does.
fn unwrap(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let v4 = |high: u16, low: u16| {
        let ([one, two], [three, four]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::from(Ipv4Addr::new(one, two, three, four))
    };
    match v6.segments() {
        // ::ffff:0:0/96 (mapped), 64:ff9b::/96 (NAT64), 2002::/16 (6to4)
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        // ::/96 (compatible, long deprecated), which is not :: or ::1
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => v4(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn allowed(guard: &Guard, address: &str) -> bool {
        guard.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn only_public_addresses_pass_however_they_are_spelt() {
        let guard = Guard::new(vec![]);
        for public in [
            "93.184.216.34",
            "1.1.1.1",
            "2606:4700::1111",
            "2002:0101:0101::1",
        ] {
            assert!(allowed(&guard, public), "{public}");
        }
        for private in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
            "::ffff:0:8.8.8.8",
            "64:ff9b:2::1",
            "100::1",
            "200::1",
            "1fff:ffff::1",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "8000::1",
            "fe00::1",
        ] {
            assert!(!allowed(&guard, private), "{private}");
        }
    }

    #[test]
    fn urls_are_https_without_credentials_unless_allowed_by_name() {
        let strict = Guard::new(vec![]);
        let local = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let check = |guard: &Guard, url: &str| guard.check_url(&Url::parse(url).unwrap()).is_ok();
        assert!(check(&strict, "https://example.com/hook"));
        for bad in [
            "http://example.com",
            "ftp://example.com",
            "https://user:pw@example.com",
            "https://127.0.0.1",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "file:///etc/passwd",
        ] {
            assert!(!check(&strict, bad), "{bad}");
        }
        assert!(check(&local, "http://127.0.0.1:8080/hook"));
        assert!(!check(&local, "http://example.com"));
        assert!(!check(&local, "https://10.0.0.1"));
    }

    proptest! {
        #[test]
        fn of_ipv6_only_global_unicast_passes(bits: u128) {
            let address = IpAddr::from(Ipv6Addr::from(bits));
            let passes = Guard::new(vec![]).check(address).is_ok();
            prop_assert!(!passes || unwrap(address).is_ipv4() || bits >> 125 == 1);
        }

        #[test]
        fn a_wrapped_address_is_judged_as_the_one_it_wraps(bits: u32) {
            let guard = Guard::new(vec![]);
            let v4 = Ipv4Addr::from(bits);
            let verdict = guard.check(v4.into()).is_ok();
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for v6 in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ] {
                prop_assert_eq!(guard.check(v6.into()).is_ok(), verdict);
            }
        }
    }
}
