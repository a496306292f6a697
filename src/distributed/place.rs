//! A process's place among those that train together, as its launcher tells it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket};

/// What torchrun and Kubernetes' training operator put into the environment of every process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    pub world_size: usize,
    /// The number of the process on its machine, from 0.
    pub local_rank: usize,
    /// Where the store is.
    pub master_host: String,
    pub master_port: u16,
    /// Whether the launcher serves the store; else rank 0 does.
    pub launcher_serves: bool,
}

/// The environment names no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("{0} is not set, though RANK is: start every process with torchrun, or set it")]
    Missing(&'static str),
    #[error("{name}={value:?} is no number from 0 to {most}")]
    NoNumber { name: &'static str, value: String, most: u64 },
    #[error("RANK={rank} does not exist in a world of {world_size}")]
    NoRank { rank: usize, world_size: usize },
}

impl Place {
    /// The place that the environment names; `None` for a process that trains alone.
    ///
    /// # Errors
    /// The environment is incomplete or contradicts itself.
    pub fn of_environment(
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Option<Self>, PlaceError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let number = |name: &'static str, most: u64| {
            let value = set(name).ok_or(PlaceError::Missing(name))?;
            let number = value.parse::<u64>().ok().filter(|number| *number <= most);
            number.ok_or(PlaceError::NoNumber { name, value, most })
        };
        if set("RANK").is_none() {
            return Ok(None);
        }
        const RANKS_MAX: u64 = 1 << 16;
        let rank = number("RANK", RANKS_MAX)? as usize;
        let world_size = number("WORLD_SIZE", RANKS_MAX)? as usize;
        if rank >= world_size {
            return Err(PlaceError::NoRank { rank, world_size });
        }
        Ok(Some(Self {
            rank,
            world_size,
            // Kubernetes starts one process per machine and does not number it.
            local_rank: if set("LOCAL_RANK").is_some() {
                number("LOCAL_RANK", RANKS_MAX)? as usize
            } else {
                0
            },
            master_host: set("MASTER_ADDR").ok_or(PlaceError::Missing("MASTER_ADDR"))?,
            master_port: number("MASTER_PORT", u64::from(u16::MAX))? as u16,
            launcher_serves: set("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
        }))
    }

    /// Rank 0 of processes on this machine, where it serves the store.
    ///
    /// # Errors
    /// There is no free port.
    pub fn first_of(world_size: usize) -> std::io::Result<Self> {
        // Another program may take the port before it is listened on, and then the run does not start.
        let master_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let master_host = Ipv4Addr::LOCALHOST.to_string();
        Ok(Self { rank: 0, world_size, local_rank: 0, master_host, master_port, launcher_serves: false })
    }

    /// The environment that names this place.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("RANK", self.rank.to_string()),
            ("WORLD_SIZE", self.world_size.to_string()),
            ("LOCAL_RANK", self.local_rank.to_string()),
            ("MASTER_ADDR", self.master_host.clone()),
            ("MASTER_PORT", self.master_port.to_string()),
            ("TORCHELASTIC_USE_AGENT_STORE", if self.launcher_serves { "True" } else { "False" }.to_owned()),
        ]
    }

    /// Whether this process serves the store.
    pub fn serves(&self) -> bool {
        self.rank == 0 && !self.launcher_serves
    }

    /// Where the others reach the store that this process serves: only on this machine if they are all on it.
    ///
    /// # Errors
    /// The port is in use.
    pub fn listener(&self) -> std::io::Result<TcpListener> {
        let here = (self.master_host.as_str(), self.master_port);
        let is_local = |address: SocketAddr| address.ip().is_loopback();
        if here.to_socket_addrs().is_ok_and(|mut addresses| addresses.all(is_local)) {
            return TcpListener::bind(here);
        }
        // Its name may stand for an address that only others can reach, as that of a Kubernetes service.
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.master_port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.master_port)))
    }

    /// This machine's address on the way to the store, at which the others reach it. A host name may stand for
    /// another address, as for 127.0.1.1 on Debian.
    ///
    /// # Errors
    /// There is no route to the store.
    pub fn address(&self) -> std::io::Result<IpAddr> {
        let wildcard = if self.master_host.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        // Connecting a UDP socket sends nothing.
        let socket = UdpSocket::bind(wildcard)?;
        socket.connect((self.master_host.as_str(), self.master_port))?;
        Ok(socket.local_addr()?.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "10.0.0.7"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ];

    fn read(variables: &[(&str, &str)]) -> Result<Option<Place>, PlaceError> {
        let find = |name: &str| variables.iter().rev().find(|(known, _)| *known == name);
        Place::of_environment(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        TORCHRUN.iter().copied().chain(more.iter().copied()).collect()
    }

    #[test]
    fn torchrun_and_kubernetes_name_a_place() {
        let place = read(&TORCHRUN).expect("complete").expect("a place");
        let expected = Place {
            rank: 3,
            world_size: 4,
            local_rank: 1,
            master_host: "10.0.0.7".into(),
            master_port: 29500,
            launcher_serves: true,
        };
        assert_eq!(place, expected);
        let named: Vec<(&str, String)> = place.environment().to_vec();
        let named: Vec<(&str, &str)> = named.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(read(&named), Ok(Some(expected)), "read as written");
        let kubernetes: Vec<_> = with(&[("LOCAL_RANK", ""), ("TORCHELASTIC_USE_AGENT_STORE", "")]);
        let place = read(&kubernetes).expect("complete").expect("a place");
        assert_eq!((place.local_rank, place.launcher_serves, place.serves()), (0, false, false));
        let first = read(&with(&[("RANK", "0"), ("TORCHELASTIC_USE_AGENT_STORE", "")]));
        assert!(first.expect("complete").expect("a place").serves());
        assert_eq!(read(&[("WORLD_SIZE", "4")]), Ok(None), "a process alone");
    }

    #[test]
    fn what_is_missing_or_impossible_is_named() {
        for (more, message) in [
            (
                ("WORLD_SIZE", ""),
                "WORLD_SIZE is not set, though RANK is: start every process with torchrun, or set it",
            ),
            (
                ("MASTER_ADDR", ""),
                "MASTER_ADDR is not set, though RANK is: start every process with torchrun, or set it",
            ),
            (("MASTER_PORT", "x"), "MASTER_PORT=\"x\" is no number from 0 to 65535"),
            (("MASTER_PORT", "70000"), "MASTER_PORT=\"70000\" is no number from 0 to 65535"),
            (("RANK", "-1"), "RANK=\"-1\" is no number from 0 to 65536"),
            (("RANK", "4"), "RANK=4 does not exist in a world of 4"),
        ] {
            assert_eq!(read(&with(&[more])).expect_err("refused").to_string(), message);
        }
    }

    #[test]
    fn the_address_is_that_of_the_way_to_the_store() {
        let place =
            Place { master_host: "127.0.0.1".into(), ..read(&TORCHRUN).expect("complete").expect("a place") };
        assert_eq!(place.address().expect("a route"), IpAddr::from([127, 0, 0, 1]));
    }
}
