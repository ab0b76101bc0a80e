//! Asks the keys role for the keyed hash of a presented API key.
//!
//! The secret under which keys are hashed never comes here. Remembers the hashes of keys that proved
//! valid, under a secret of this process, so that no table of presented keys exists in memory; and apart from them some of those
//! that did not, so that a client with a wrong key doesn't ask each time. Whoever tries many secrets for one key waits for the turns
//! of that key from there.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use clawgress_api::proto::MacApiKeyRequest;
use clawgress_api::proto::keys_client::KeysClient;
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{ApiKey, KEY_MAC_BYTES, Origin};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::transport::Channel;
use zeroize::Zeroize as _;

use crate::shared::{Shared, Turns};
use crate::told::Told;
use crate::{accept, limit};

type Mac = [u8; KEY_MAC_BYTES];

/// The client of the keys role.
#[derive(Debug)]
pub struct Keys {
    client: KeysClient<Channel>,
    /// By the key that is claimed, and by where it comes from, of each a share: who knows a key's id takes no turns of its owner.
    calls: Turns,
    cache_key: hmac::Key,
    cache: Mutex<Cache>,
    /// Hashes of keys that proved nobody.
    wrong: Mutex<Shared<Mac, (Mac, Instant)>>,
    /// Tells keys' ids apart.
    owners: RandomState,
    /// That the role can't be asked is no agent's doing: the log is told of it once in a while for all.
    told: Told,
}

/// The keyed hash of a key that was presented.
#[derive(Clone, Copy, Debug)]
pub struct Hashed {
    /// As the registry has it of a valid key.
    pub mac: Mac,
    /// What it is remembered by.
    name: Mac,
    /// Whether it was, lately.
    is_known: bool,
}

/// Hashes of valid keys, first in first out.
#[derive(Debug, Default)]
struct Cache {
    macs: HashMap<Mac, (Mac, Instant)>,
    order: VecDeque<Mac>,
}

// === impl Keys ===

impl Keys {
    /// A client over `channel`.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(channel: Channel) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let cache_key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        secret.zeroize();
        Ok(Keys {
            client: KeysClient::new(channel),
            calls: Turns::new(limit::KEYS_CALLS_MAX),
            cache_key,
            cache: Mutex::default(),
            wrong: Mutex::new(Shared::new(limit::KEYS_WRONG_MAX)),
            owners: RandomState::new(),
            told: Told::default(),
        })
    }

    /// The keyed hash of `key`, which comes from there.
    ///
    /// # Errors
    /// [`DropReason::IdentityUnavailable`] if the keys role does not answer in time.
    pub async fn mac(&self, key: ApiKey<'_>, from: Origin<'_>) -> Result<Hashed, DropReason> {
        let name = self.name(key);
        match self.known(&name) {
            Some((mac, age)) => Ok(Hashed { mac, name, is_known: age < limit::KEYS_CACHE / 2 }),
            // Boxed: most are known, and whoever serves would have room for the call in each request.
            None => Box::pin(self.ask(key, from, name)).await,
        }
    }

    async fn ask(&self, key: ApiKey<'_>, from: Origin<'_>, name: Mac) -> Result<Hashed, DropReason> {
        let call = async {
            let turn = self.calls.take(self.asker(key, from)).await;
            let _turn = turn.map_err(|_| tonic::Status::unavailable("closed"))?;
            // Another request of the same agent may have asked meanwhile: clients begin many streams at once.
            if let Some((mac, _)) = self.known(&name) {
                return Ok(mac.to_vec());
            }
            let request = MacApiKeyRequest { key: key.expose().as_bytes().to_vec() };
            Ok::<_, tonic::Status>(self.client.clone().mac_api_key(request).await?.into_inner().mac)
        };
        match timeout(limit::KEYS_CALL, call).await {
            Ok(Ok(mac)) => {
                let mac = mac.try_into().map_err(|_| DropReason::IdentityUnavailable)?;
                Ok(Hashed { mac, name, is_known: false })
            }
            failed => {
                if let Some(untold) = self.told.turn(0, Instant::now()) {
                    let why = match failed {
                        Ok(Err(status)) => status.to_string(),
                        _ => "it does not answer in time".to_owned(),
                    };
                    tracing::warn!(why, untold, "the keys role can't be asked; credentials are refused");
                }
                Err(DropReason::IdentityUnavailable)
            }
        }
    }

    /// What is remembered by this name, and for how long.
    fn known(&self, name: &Mac) -> Option<(Mac, Duration)> {
        let known = self.cache.lock().macs.get(name).copied();
        let known = known.or_else(|| self.wrong.lock().find(name).copied());
        known.map(|(mac, at)| (mac, at.elapsed())).filter(|(_, age)| *age < limit::KEYS_CACHE)
    }

    /// Whose room a key takes: that of the id that it claims.
    fn owner(&self, key: ApiKey<'_>) -> u32 {
        half(self.owners.hash_one(key.id()))
    }

    /// Whose turns a key takes: those of the id that it claims, from there.
    fn asker(&self, key: ApiKey<'_>, from: Origin<'_>) -> u32 {
        half(match from {
            Origin::Agent(agent) => self.owners.hash_one((key.id(), agent)),
            Origin::Address { address, .. } => self.owners.hash_one((key.id(), accept::source(address))),
        })
    }

    /// Remembers the hash of a key that proved valid. Invalid keys are never remembered here, so nobody can push valid ones out
    /// without owning as many.
    pub fn remember(&self, hashed: Hashed) {
        let Hashed { mac, name, is_known } = hashed;
        if is_known {
            return;
        }
        let mut cache = self.cache.lock();
        if cache.macs.insert(name, (mac, Instant::now())).is_none() {
            cache.order.push_back(name);
        }
        while cache.order.len() > limit::KEYS_CACHE_MAX {
            if let Some(oldest) = cache.order.pop_front() {
                cache.macs.remove(&oldest);
            }
        }
    }

    /// Remembers the hash of a key that proved nobody: what it is compared with may change, and decides each time.
    pub fn doubt(&self, key: ApiKey<'_>, hashed: Hashed) {
        if !hashed.is_known {
            self.wrong.lock().keep(self.owner(key), hashed.name, (hashed.mac, Instant::now()));
        }
    }

    fn name(&self, key: ApiKey<'_>) -> Mac {
        let tag = hmac::sign(&self.cache_key, key.expose().as_bytes());
        let mut name = [0; KEY_MAC_BYTES];
        name.copy_from_slice(tag.as_ref());
        name
    }
}

fn half(hash: u64) -> u32 {
    let [a, b, c, d, ..] = hash.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use clawgress_api::socket;
    use clawgress_identity::{Agent, AgentId, AgentState, ApiKeyRecord, TrustSnapshot};

    use super::*;

    const MAC: Mac = [3; KEY_MAC_BYTES];
    const NOW_S: i64 = 1_900_000_000;
    /// Keys that the look-up is among.
    const OTHERS: u32 = 10_000;
    const ROUNDS: usize = 101;
    const ROUND: u32 = 100;

    fn record(id: &str) -> ApiKeyRecord {
        ApiKeyRecord {
            id: id.to_owned(),
            agent: "web".parse().unwrap(),
            mac: MAC,
            created_at_s: None,
            not_before_s: None,
            expires_at_s: None,
            revoked_at_s: None,
        }
    }

    fn trust(id: &str) -> TrustSnapshot {
        let agent = Agent {
            id: "web".parse().unwrap(),
            index: 1,
            team: None,
            project: None,
            environment: None,
            labels: std::collections::BTreeMap::new(),
            state: AgentState::Active,
            sources: Vec::new(),
        };
        let other = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            let text = ApiKey::compose([a, b, c, d, 0, 0], [0; 32]);
            record(ApiKey::id_of(&text).unwrap())
        };
        TrustSnapshot::new([agent], (0..OTHERS).map(other).chain([record(id)]), [])
    }

    /// Who knows a key's id and has a wrong secret waits for itself alone.
    #[tokio::test]
    async fn a_key_has_turns_from_wherever_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::new(socket::channel(&directory.path().join("keys.sock")).unwrap()).unwrap();
        let text = ApiKey::compose([9; 6], [2; 32]);
        let key = ApiKey::parse(&text).unwrap();
        let from = |n| Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)) };
        let at_once = async |n| timeout(Duration::ZERO, keys.calls.take(keys.asker(key, from(n)))).await;
        let mut held = Vec::new();
        for _ in 0..limit::KEYS_CALLS_MAX / 8 {
            held.push(at_once(1).await.expect("its own").unwrap());
        }
        assert!(at_once(1).await.is_err(), "no more of them");
        assert!(at_once(2).await.is_ok());
    }

    /// Counts what the log is told.
    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::atomic::AtomicUsize>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            self.0.fetch_add(lines, std::sync::atomic::Ordering::SeqCst);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Whoever asks while the keys role is away can't fill the log.
    #[tokio::test]
    async fn that_nobody_can_be_asked_is_told_once_in_a_while() {
        let lines = Lines::default();
        let writing = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writing.clone()).finish();
        let _told = tracing::subscriber::set_default(log);
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::new(socket::channel(&directory.path().join("keys.sock")).unwrap()).unwrap();
        let origin = Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
        for n in 0..20 {
            let text = ApiKey::compose([n; 6], [2; 32]);
            assert!(keys.mac(ApiKey::parse(&text).unwrap(), origin).await.is_err());
        }
        assert_eq!(lines.0.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    /// A key that proved valid asks nobody, and another is not taken for it. Prints what a request pays for its key then: the hash,
    /// the look-up and that it is remembered.
    #[tokio::test]
    async fn a_key_that_is_known_asks_nobody() {
        let origin = Origin::Address { interface: None, address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
        // Nobody listens there.
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::new(socket::channel(&directory.path().join("keys.sock")).unwrap()).unwrap();
        let (text, other) = (ApiKey::compose([9; 6], [2; 32]), ApiKey::compose([9; 6], [4; 32]));
        let (key, other) = (ApiKey::parse(&text).unwrap(), ApiKey::parse(&other).unwrap());
        assert_eq!(
            keys.mac(key, origin).await.map(|hashed| hashed.mac),
            Err(DropReason::IdentityUnavailable)
        );
        keys.remember(Hashed { mac: MAC, name: keys.name(key), is_known: false });
        assert_eq!(keys.mac(key, origin).await.map(|hashed| hashed.mac), Ok(MAC));
        assert_eq!(
            keys.mac(other, origin).await.map(|hashed| hashed.mac),
            Err(DropReason::IdentityUnavailable)
        );
        // One that proved nobody neither, and it pushes out none that did, however many there are.
        let wrong = |n: u8| ApiKey::compose([9; 6], [n; 32]);
        for n in 5..=u8::MAX {
            let text = wrong(n);
            let key = ApiKey::parse(&text).unwrap();
            keys.doubt(key, Hashed { mac: [n; KEY_MAC_BYTES], name: keys.name(key), is_known: false });
        }
        let text_of_last = wrong(u8::MAX);
        let last = ApiKey::parse(&text_of_last).unwrap();
        assert_eq!(keys.mac(last, origin).await.map(|hashed| hashed.mac), Ok([u8::MAX; KEY_MAC_BYTES]));
        assert!(keys.wrong.lock().len() <= limit::KEYS_WRONG_MAX / 8, "the share of one key");
        assert_eq!(keys.mac(key, origin).await.map(|hashed| hashed.mac), Ok(MAC));

        let (trust, user): (_, AgentId) = (trust(key.id()), "web".parse().unwrap());
        let mut taken_ns = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            for _ in 0..ROUND {
                let key = ApiKey::parse(&text).unwrap();
                let hashed = keys.mac(key, origin).await.unwrap();
                trust.by_api_key(key, &hashed.mac, &user, origin, NOW_S).unwrap();
                keys.remember(hashed);
            }
            taken_ns.push(began.elapsed().as_nanos() / u128::from(ROUND));
        }
        taken_ns.sort_unstable();
        println!(
            "a known key among {OTHERS} others: {} ns, the median of {ROUNDS} rounds",
            taken_ns[ROUNDS / 2]
        );
    }
}
