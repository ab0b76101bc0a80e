//! Which interfaces send a packet when its time has come: those whose queue is `fq` (tc-fq(8)), or `mq` with an
//! `fq` for each of the card's own queues. No other queue looks at that time: a packet would leave at once.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::Netlink;

/// A queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Queue {
    ifindex: u32,
    handle: TcHandle,
    parent: TcHandle,
    kind: String,
}

impl Netlink {
    /// The interfaces that do, by index.
    ///
    /// # Errors
    /// If rtnetlink fails.
    pub async fn paced(&self) -> Result<BTreeSet<u32>> {
        let mut queues = Vec::new();
        let mut stream = self.handle.qdisc().get().execute();
        while let Some(message) = stream.try_next().await.context("cannot list the queues of interfaces")? {
            queues.extend(Queue::new(&message));
        }
        Ok(paced(&queues))
    }
}

// === impl Queue ===

impl Queue {
    fn new(message: &TcMessage) -> Option<Queue> {
        let kind = message.attributes.iter().find_map(|a| match a {
            TcAttribute::Kind(kind) => Some(kind.clone()),
            _ => None,
        })?;
        let ifindex = u32::try_from(message.header.index).ok()?;
        Some(Queue { ifindex, handle: message.header.handle, parent: message.header.parent, kind })
    }
}

fn paced(queues: &[Queue]) -> BTreeSet<u32> {
    let roots = queues.iter().filter(|q| q.parent == TcHandle::ROOT);
    let is_paced = |root: &&Queue| match root.kind.as_str() {
        "fq" => true,
        "mq" => {
            let is_below = |q: &&Queue| {
                q.ifindex == root.ifindex && q.parent.major == root.handle.major && q.parent.minor != 0
            };
            let mut below = queues.iter().filter(is_below).peekable();
            below.peek().is_some() && below.all(|q| q.kind == "fq")
        }
        _ => false,
    };
    roots.filter(is_paced).map(|root| root.ifindex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(ifindex: u32, handle: u16, parent: TcHandle, kind: &str) -> Queue {
        Queue { ifindex, handle: TcHandle { major: handle, minor: 0 }, parent, kind: kind.to_owned() }
    }

    #[test]
    fn only_fq_alone_or_on_every_queue_of_the_card_paces() {
        let below = |major, minor| TcHandle { major, minor };
        let queues = [
            queue(1, 0, TcHandle::ROOT, "noqueue"),
            queue(2, 0x8001, TcHandle::ROOT, "fq"),
            queue(2, 0xFFFF, TcHandle::INGRESS, "clsact"),
            // As the kernel makes it by default, without numbers.
            queue(3, 0, TcHandle::ROOT, "mq"),
            queue(3, 0, below(0, 1), "fq"),
            queue(3, 0, below(0, 2), "fq"),
            // One queue of the card is another.
            queue(4, 0x10, TcHandle::ROOT, "mq"),
            queue(4, 0, below(0x10, 1), "fq"),
            queue(4, 0, below(0x10, 2), "fq_codel"),
            // Another's children are not its own.
            queue(5, 0, TcHandle::ROOT, "mq"),
            queue(6, 1, TcHandle::ROOT, "htb"),
            queue(6, 2, below(1, 1), "fq"),
            queue(7, 0, TcHandle::ROOT, "fq_codel"),
        ];
        assert_eq!(paced(&queues), BTreeSet::from([2, 3]));
        assert_eq!(paced(&[]), BTreeSet::new());
    }
}
