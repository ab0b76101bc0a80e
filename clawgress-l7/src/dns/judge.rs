//! What of an upstream's answer goes on: the chain from the name that was asked for to records of the type that was
//! asked for, without addresses that policy doesn't open and without the keys that would hide a server name.
//!
//! INVARIANT: no record goes on that the chain doesn't lead to, and no address that `refuse` refuses.

use std::net::IpAddr;

use clawgress_ebpf_common::DropReason;
use hickory_resolver::proto::rr::rdata::svcb::{IpHint, Mandatory, SVCB, SvcParamKey, SvcParamValue};
use hickory_resolver::proto::rr::rdata::{A, AAAA, HTTPS};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::limit;

/// Longest chain of CNAME records: what common resolvers follow at most.
const CHAIN_MAX: usize = 16;
/// Most records of an answer that go on: more than any public name has.
const RECORDS_MAX: usize = 64;

/// What goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// In the order of the chain.
    pub records: Vec<Record>,
    /// The names that it leads to, in lower case: of the chain, and those that services are at.
    pub aliases: Vec<Name>,
    /// Addresses among them, with their time to live in seconds: [`limit::ADDRESSES_MAX`] at most, since each may have to be
    /// opened before it is told. Others are left out.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Why an address was taken out, if one was.
    pub refused: Option<(IpAddr, DropReason)>,
}

/// Judges `answers` to a question for `name` and `kind`; `refuse` says why an address may not be told.
pub fn judge(
    name: &Name,
    kind: RecordType,
    answers: &[Record],
    refuse: impl Fn(IpAddr) -> Option<DropReason>,
) -> Judged {
    let mut judged = Judged::default();
    let mut owner = name.to_lowercase();
    for _ in 0..CHAIN_MAX {
        let of_owner = |r: &&Record| r.dns_class == DNSClass::IN && r.name.to_lowercase() == owner;
        let mut own = answers.iter().filter(of_owner);
        let alias = own.clone().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((record, target.0.to_lowercase())),
            _ => None,
        });
        match alias {
            Some((record, target)) => {
                let mut record = record.clone();
                record.ttl = record.ttl.min(limit::DNS_TTL_S_MAX);
                judged.records.push(record);
                judged.aliases.push(target.clone());
                // Asked for itself, it is the answer; and one that leads back leads nowhere.
                let is_loop = judged.records.iter().any(|r| r.name.to_lowercase() == target);
                if kind == RecordType::CNAME || is_loop {
                    return judged;
                }
                owner = target;
            }
            None => {
                own.by_ref()
                    .filter(|record| record.record_type() == kind)
                    .take(RECORDS_MAX)
                    .for_each(|record| judged.push(record, &refuse));
                return judged;
            }
        }
    }
    // A chain without an end.
    Judged::default()
}

// === impl Judged ===

impl Judged {
    /// Why there is nothing to tell of this type, if it is because addresses were refused.
    #[must_use]
    pub fn is_emptied(&self, kind: RecordType) -> Option<(IpAddr, DropReason)> {
        self.refused.filter(|_| !self.records.iter().any(|record| record.record_type() == kind))
    }

    fn push(&mut self, record: &Record, refuse: &impl Fn(IpAddr) -> Option<DropReason>) {
        let mut record = record.clone();
        record.ttl = record.ttl.min(limit::DNS_TTL_S_MAX);
        let ttl = record.ttl;
        let is_told = match &mut record.data {
            RData::A(A(ip)) => self.may_tell(IpAddr::V4(*ip), ttl, refuse),
            RData::AAAA(AAAA(ip)) => self.may_tell(IpAddr::V6(*ip), ttl, refuse),
            RData::HTTPS(HTTPS(service)) | RData::SVCB(service) => {
                self.leads_to(&service.target_name, &record.name);
                self.service(service, ttl, refuse);
                true
            }
            _ => true,
        };
        if is_told {
            self.records.push(record);
        }
    }

    /// Notes where a service is (RFC 9460 section 2.4), if that is not at its own name: who takes it has the addresses that are
    /// said to be that one's, or asks for them.
    fn leads_to(&mut self, target: &Name, owner: &Name) {
        let target = target.to_lowercase();
        if !target.is_root() && target != owner.to_lowercase() && !self.aliases.contains(&target) {
            self.aliases.push(target);
        }
    }

    fn may_tell(&mut self, ip: IpAddr, ttl: u32, refuse: &impl Fn(IpAddr) -> Option<DropReason>) -> bool {
        let ip = ip.to_canonical();
        match refuse(ip) {
            None if self.addresses.len() >= limit::ADDRESSES_MAX => false,
            None => {
                self.addresses.push((ip, ttl));
                true
            }
            Some(reason) => {
                self.refused.get_or_insert((ip, reason));
                false
            }
        }
    }

    /// Takes the keys of ECH (RFC 9848) out, and hints that may not be told; and what says that either is there.
    fn service(&mut self, service: &mut SVCB, ttl: u32, refuse: &impl Fn(IpAddr) -> Option<DropReason>) {
        service.svc_params.retain_mut(|(key, value)| match value {
            SvcParamValue::EchConfigList(_) => false,
            SvcParamValue::Ipv4Hint(IpHint(hints)) => {
                hints.retain(|A(ip)| self.may_tell(IpAddr::V4(*ip), ttl, refuse));
                !hints.is_empty()
            }
            SvcParamValue::Ipv6Hint(IpHint(hints)) => {
                hints.retain(|AAAA(ip)| self.may_tell(IpAddr::V6(*ip), ttl, refuse));
                !hints.is_empty()
            }
            // A value under a key that is not its own would be read otherwise by who reads the key.
            SvcParamValue::Unknown(_) => matches!(key, SvcParamKey::Key(_) | SvcParamKey::Unknown(_)),
            _ => true,
        });
        let there: Vec<SvcParamKey> = service.svc_params.iter().map(|(key, _)| *key).collect();
        service.svc_params.retain_mut(|(_, value)| match value {
            SvcParamValue::Mandatory(Mandatory(keys)) => {
                keys.retain(|key| there.contains(key));
                !keys.is_empty()
            }
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::CNAME;
    use hickory_resolver::proto::rr::rdata::TXT;
    use hickory_resolver::proto::rr::rdata::svcb::{Alpn, EchConfigList};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("name")
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(name(owner), 60, data)
    }

    fn a(owner: &str, last: u8) -> Record {
        record(owner, RData::A(A::new(203, 0, 113, last)))
    }

    fn cname(owner: &str, target: &str) -> Record {
        record(owner, RData::CNAME(CNAME(name(target))))
    }

    fn anything(_: IpAddr) -> Option<DropReason> {
        None
    }

    #[test]
    fn only_what_the_chain_leads_to_goes_on() {
        let answers = [
            a("elsewhere.test.", 1),
            cname("API.allowed.test.", "edge.cdn.test."),
            a("edge.cdn.TEST.", 2),
            record("edge.cdn.test.", RData::TXT(TXT::new(vec!["data".to_owned()]))),
            a("api.allowed.test.", 3),
        ];
        let judged = judge(&name("api.allowed.test."), RecordType::A, &answers, anything);
        assert_eq!(judged.records, [answers[1].clone(), answers[2].clone()]);
        assert_eq!(judged.addresses, [("203.0.113.2".parse().expect("address"), 60)]);
        assert_eq!(judged.aliases, [name("edge.cdn.test.")]);
        let judged = judge(&name("api.allowed.test."), RecordType::CNAME, &answers, anything);
        assert_eq!(judged.records, [answers[1].clone()]);
        let judged = judge(&name("other.test."), RecordType::A, &answers, anything);
        assert_eq!(judged, Judged::default());
    }

    /// Aliases are no longer good than what they lead to.
    #[test]
    fn aliases_are_told_to_be_good_for_as_long_as_others() {
        let mut answers = [cname("api.allowed.test.", "edge.test."), a("edge.test.", 1)];
        answers.iter_mut().for_each(|record| record.ttl = 604_800);
        for kind in [RecordType::A, RecordType::CNAME] {
            let judged = judge(&name("api.allowed.test."), kind, &answers, anything);
            assert!(judged.records.iter().all(|record| record.ttl == limit::DNS_TTL_S_MAX), "{kind}");
        }
    }

    #[test]
    fn chains_end() {
        let round = [cname("a.test.", "b.test."), cname("b.test.", "a.test.")];
        assert!(judge(&name("a.test."), RecordType::A, &round, anything).addresses.is_empty());
        let own = [cname("a.test.", "a.test."), a("a.test.", 1)];
        assert!(judge(&name("a.test."), RecordType::A, &own, anything).addresses.is_empty());
        let mut long: Vec<Record> =
            (0..20).map(|n| cname(&format!("n{n}.test."), &format!("n{}.test.", n + 1))).collect();
        long.push(a("n20.test.", 1));
        assert_eq!(judge(&name("n0.test."), RecordType::A, &long, anything), Judged::default());
        assert_eq!(judge(&name("n10.test."), RecordType::A, &long, anything).addresses.len(), 1);
        let many: Vec<Record> = (0..200).map(|n| a("a.test.", n)).collect();
        let judged = judge(&name("a.test."), RecordType::A, &many, anything);
        assert_eq!(judged.records.len(), limit::ADDRESSES_MAX, "no more than may be opened");
        assert_eq!(judged.addresses.len(), limit::ADDRESSES_MAX);
        let texts: Vec<Record> =
            (0..200).map(|n| record("a.test.", RData::TXT(TXT::new(vec![n.to_string()])))).collect();
        assert_eq!(judge(&name("a.test."), RecordType::TXT, &texts, anything).records.len(), RECORDS_MAX);
    }

    #[test]
    fn refused_addresses_are_taken_out() {
        let refuse = |ip: IpAddr| (ip.to_string() == "203.0.113.1").then_some(DropReason::AddressReserved);
        let answers = [a("a.test.", 1), a("a.test.", 2)];
        let judged = judge(&name("a.test."), RecordType::A, &answers, refuse);
        assert_eq!(judged.records, [answers[1].clone()]);
        let (ip, reason) = judged.refused.expect("refused");
        assert_eq!((ip.to_string().as_str(), reason), ("203.0.113.1", DropReason::AddressReserved));
        let mapped = record("a.test.", RData::AAAA(AAAA("::ffff:203.0.113.1".parse().expect("address"))));
        let judged = judge(&name("a.test."), RecordType::AAAA, &[mapped], refuse);
        assert!(judged.records.is_empty() && judged.refused.is_some(), "however it is written");
    }

    /// Who takes a service goes to its target, and to the addresses that are said to be that target's.
    #[test]
    fn targets_of_services_are_names_that_it_leads_to() {
        let service = |priority, target| {
            let hint = (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(203, 0, 113, 1)])));
            record("a.test.", RData::HTTPS(HTTPS(SVCB::new(priority, name(target), vec![hint]))))
        };
        let answers = [
            service(1, "."),
            service(1, "A.test."),
            service(2, "Edge.CDN.test."),
            service(3, "edge.cdn.test."),
            service(0, "other.test."),
        ];
        let judged = judge(&name("a.test."), RecordType::HTTPS, &answers, anything);
        assert_eq!(judged.aliases, [name("edge.cdn.test."), name("other.test.")]);
        assert_eq!((judged.records.len(), judged.addresses.len()), (5, 5));
    }

    #[test]
    fn keys_of_ech_and_refused_hints_are_taken_out() {
        let refuse = |ip: IpAddr| (ip.to_string() == "203.0.113.1").then_some(DropReason::AddressReserved);
        let service = |params| RData::HTTPS(HTTPS(SVCB::new(1, name("."), params)));
        let alpn = (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()])));
        let hints = |last: &[u8]| {
            let hints = last.iter().map(|n| A::new(203, 0, 113, *n)).collect();
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(hints)))
        };
        let mandatory = |keys| (SvcParamKey::Mandatory, SvcParamValue::Mandatory(Mandatory(keys)));
        let ech = (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3])));
        for (before, after) in [
            (
                vec![
                    mandatory(vec![SvcParamKey::Alpn, SvcParamKey::EchConfigList]),
                    alpn.clone(),
                    hints(&[1, 2]),
                    ech.clone(),
                ],
                vec![mandatory(vec![SvcParamKey::Alpn]), alpn.clone(), hints(&[2])],
            ),
            (vec![mandatory(vec![SvcParamKey::EchConfigList]), hints(&[1]), ech.clone()], vec![]),
            (
                vec![
                    alpn.clone(),
                    (
                        SvcParamKey::EchConfigList,
                        SvcParamValue::Unknown(hickory_resolver::proto::rr::rdata::svcb::Unknown(vec![1])),
                    ),
                ],
                vec![alpn.clone()],
            ),
        ] {
            let record = record("a.test.", service(before));
            let judged = judge(&name("a.test."), RecordType::HTTPS, &[record], refuse);
            assert_eq!(judged.records[0].data, service(after));
        }
    }
}
