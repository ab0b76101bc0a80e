//! Bounds of the proxy, each with the reason for its size.

use std::time::Duration;

/// From accept to a whole TLS hello (or, at the proxy over TLS, to the first request inside), CONNECT head or first
/// request head: slow links make it in one second; a client that takes ten is stuck or hostile.
pub const PEEK: Duration = Duration::from_secs(10);
/// How long a client that may speak an unknown protocol is waited for before the server is given the
/// first word (SSH, SMTP and databases greet first).
pub const SERVER_FIRST: Duration = Duration::from_millis(300);
/// Most certificates of a client's chain: a path has six intermediates at most, and some send the root too.
pub const CHAIN: usize = 8;
/// Most bytes of it, which each connection holds twice: several times what eight certificates of today have.
pub const CHAIN_BYTES: usize = 16 * 1024;
/// How often the files of the proxy's certificate are looked at: soon enough for who renews it and waits.
pub const TLS_FILES_LOOK: Duration = Duration::from_secs(2);
/// Most bytes of such a file.
pub const TLS_FILE_BYTES: usize = 64 * 1024;
/// Most bytes of an operator's own rules, or table of prices: several times those that come with the program.
pub const OPERATOR_FILE_BYTES: u64 = 4 << 20;
/// From the first byte of a later request on a kept connection to the end of its head.
pub const HEAD: Duration = Duration::from_secs(10);
/// Idle time of a kept client connection between requests.
pub const KEEPALIVE_S: u64 = 60;
/// The same.
pub const KEEPALIVE: Duration = Duration::from_secs(KEEPALIVE_S);
/// Between two reads of a request body whose length was told, or that is judged.
pub const BODY_READ: Duration = Duration::from_secs(60);
/// The same of one that may be one side of a conversation: as long as its server may be quiet by default.
pub const CONVERSATION: Duration = Duration::from_secs(600);
/// How often the pace of a request body is looked at whose length was told, and after how much waiting that of a client which
/// takes an answer,
pub const BODY_LOOK: Duration = Duration::from_secs(60);
/// and the least that has to pass in between: a hundredth of what the slowest links carry.
pub const BODY_LOOK_BYTES_LEAST: usize = 8 * 1024;
/// For a client to take more of a response: a stalled reader holds memory.
pub const CLIENT_WRITE: Duration = Duration::from_secs(60);
/// For what is left of a body after a request was denied early, so that the client sees the answer.
pub const DRAIN_BODY: Duration = Duration::from_secs(3);
/// For a client to read a last word before its connection is dropped.
pub const LINGER: Duration = Duration::from_millis(500);
/// Bytes read and thrown away while lingering.
pub const LINGER_BYTES: usize = 256 * 1024;

/// For one resolution, retries included.
pub const RESOLVE: Duration = Duration::from_secs(5);
/// How long the addresses of one family are known where the other could not be found: nobody waits for it with each request, and
/// what fails in passing is back soon.
pub const RESOLVED_HALF: Duration = Duration::from_secs(5);
/// How long a DNS server that did not answer in time is asked last, while it keeps everything waiting.
pub const RESOLVER_REST: Duration = Duration::from_secs(30);
/// Addresses of one name that are judged: more than any public name answers with.
pub const ADDRESSES_MAX: usize = 16;
/// Addresses of one name that are dialled: a dead first choice must not cost a minute.
pub const DIALS_MAX: usize = 4;
/// For one connection attempt.
pub const DIAL: Duration = Duration::from_secs(5);
/// For one attempt through a parent proxy, which has to dial, too.
pub const DIAL_PARENT: Duration = Duration::from_secs(15);
/// Head start of one attempt through a parent proxy over the next: it gives its own attempts as much.
pub const DIAL_PARENT_STAGGER: Duration = Duration::from_secs(5);
/// What Pingora gives an attempt besides: the bound of the attempt is to end it, and says why.
pub const DIAL_SLACK: Duration = Duration::from_secs(2);
/// For TLS with an upstream, besides the attempt to connect.
pub const DIAL_TLS: Duration = Duration::from_secs(5);
/// Interim answers of a parent proxy to one request: it has none to give as a rule, and another one may announce the next.
pub const PARENT_INTERIMS_MAX: usize = 8;
/// Most bytes of a file with the credential for one.
pub const PARENT_FILE_BYTES: usize = 4096;
/// How soon what is carried to one over TLS ends after its tunnel did, at the latest: it is looked for while something moves.
pub const PARENT_LOOK: Duration = Duration::from_millis(100);
/// How often the log tells that one fails.
pub const PARENT_TOLD: Duration = Duration::from_secs(10);
/// Head start of one attempt over the next (RFC 8305 section 5, recommended value).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);
/// For an upstream to take more of a request.
pub const UPSTREAM_WRITE: Duration = Duration::from_secs(60);
/// Idle time of a pooled upstream connection: below the 60 s at which common servers close.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(30);
/// Pooled upstream connections of a process, all agents together; as many of HTTP/2.
pub const UPSTREAM_POOL: usize = 4096;
/// Upstream connections, used or pooled, from which on those of an agent are not pooled: eight agents have to work together to push
/// out what others need.
pub const UPSTREAM_SHARE: usize = UPSTREAM_POOL / 8;

/// Streams of a client's connection of HTTP/2 at once: what RFC 9113 (6.5.2) calls the least that is useful.
pub const STREAMS_MAX: u32 = 100;
/// Streams of it that are served: a client may begin another a moment before the end of one is noticed here.
pub const STREAMS_SERVED_MAX: u32 = 2 * STREAMS_MAX;
/// Most bytes of a stream's head, before it was compressed: what a head of HTTP/1 may have.
pub const STREAM_HEAD_BYTES: u32 = 64 * 1024;
/// What a client's compression may remember, bytes: what RFC 7541 has by default.
pub const STREAM_TABLE_BYTES: u32 = 4096;
/// Bytes of a stream's body that may be under way, and those of all streams of a connection: what is held of a client that
/// nobody reads. Some hundred megabits a second from the other end of a continent.
pub const STREAM_WINDOW: u32 = 128 * 1024;
/// See [`STREAM_WINDOW`]. Several times as much, and so it is where both are less (see [`windows`]): a stream whose server takes
/// nothing fills its own window, and must not leave the others none. It is also the most that a connection makes this process hold so.
pub const STREAMS_WINDOW: u32 = 16 * STREAM_WINDOW;
/// What a source's connections of HTTP/2 may have under way together, about, and what an agent's connections to upstreams may: a new
/// one gets its part of it for a window, if that is less than what is usual. With the thousands that one may have, the windows of all
/// would be gigabytes.
pub const WINDOWS_BYTES: u32 = 64 << 20;
/// The least window that a connection gets: what HTTP/2 begins with (RFC 9113 section 6.9.2), and none can be told to begin with less.
/// Some megabits a second from afar.
pub const WINDOW_LEAST: u32 = 65_535;
/// So many streams share it at least, of which each could fill its own window alone.
pub const WINDOW_STREAMS: u32 = 4;
/// Bytes of an answer that wait for a client to take them, of each stream.
pub const STREAM_SEND_BYTES: usize = 64 * 1024;
/// Malformed streams, and those above [`STREAMS_MAX`], of a connection before it is closed: some clients begin many before they
/// are told how many they may.
pub const STREAM_ERRORS_MAX: usize = 256;
/// Streams that a client reset before they were looked at, before its connection is closed (CVE-2023-44487).
pub const STREAM_RESETS_MAX: usize = 20;
/// Streams that a client resets while they are served, in [`STREAM_RESETS_LOOK`], before its connection takes no more: some for
/// each page that is left, and a small part of what a flood needs.
pub const STREAM_RESETS_SERVED_MAX: u32 = 500;
/// See [`STREAM_RESETS_SERVED_MAX`].
pub const STREAM_RESETS_LOOK: Duration = Duration::from_secs(10);
/// For what is cut to let go of its server's connection, of which it was one stream: others go on by that. Nothing passes
/// meanwhile.
pub const CUT_GRACE: Duration = Duration::from_millis(500);
/// Frames that carry nothing of a request (PING, SETTINGS, windows, what nobody knows) that a client may send at once,
pub const OVERHEAD_FRAMES_MAX: u32 = 10_000;
/// those that it may send in a second besides, which cost next to nothing,
pub const OVERHEAD_FRAMES_PER_S: u32 = 200;
/// and bytes that it is sent for which it may send one more: half of what a small message takes in which a client of gRPC is told
/// something, and answers by a PING and two windows. What a PING is answered is half as much.
pub const OVERHEAD_BYTES_EACH: f64 = 32.0;
/// Interim answers of a server that its client is told; of HTTP/2 besides one 100: they wait for it outside of all windows.
pub const INTERIMS_MAX: u32 = 8;
/// Streams of a connection that are looked at before one has told whose it is: fewer of nobody than
/// [`STRANGER_REQUESTS_MAX`] are answered after the connection was told to end.
pub const STRANGER_STREAMS_MAX: usize = 4;
/// Bytes of a body that are kept for another attempt to send it, as Pingora does of HTTP/1.
pub const RETRY_BYTES: usize = 64 * 1024;

/// Streams of one agent on one connection to an upstream.
pub const UPSTREAM_STREAMS_MAX: usize = 100;
/// Bytes of an answer that may be under way, and those of all on a connection.
pub const UPSTREAM_STREAM_WINDOW: u32 = 256 * 1024;
/// See [`UPSTREAM_STREAM_WINDOW`]. Several times as much, and so it is where both are less (see [`windows`]): an answer whose client takes nothing must not hold up the others.
pub const UPSTREAM_WINDOW: u32 = 16 * UPSTREAM_STREAM_WINDOW;
/// Most bytes of the head, or of the trailers, of a server's answer: no budget counts them. Several times what common servers
/// send.
pub const ANSWER_HEAD_BYTES: usize = 256 * 1024;
/// How often an upstream of HTTP/2 is asked whether it is there.
pub const UPSTREAM_PING: Duration = Duration::from_secs(30);

/// Idle time of a tunnel: what load balancers grant WebSockets at most. Dead peers are found earlier,
/// by TCP keep-alive.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
/// Idle time of a tunnel of which one side has ended.
pub const TUNNEL_HALF_CLOSED: Duration = Duration::from_secs(300);
/// First probe of a silent connection, and the time between probes.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// One source may hold this part of all connections, so that it can't lock the others out. A source is
/// an IPv4 address or an IPv6 network of 64 bits, of which a host has all addresses (RFC 7421). What comes by loopback, which may
/// be all that there is, leaves the others this part.
pub const SOURCE_SHARE: usize = 4;
/// For the datapath role to steer new connections to others, when this process drains.
pub const WITHDRAW: Duration = Duration::from_secs(2);
/// Connections accepted from one listener before it is closed: as many as wait there at most (the kernel's
/// `net.core.somaxconn` by default).
pub const REST_MAX: usize = 4096;

/// Longest time for which an answer is told to be good, seconds: what is opened by it is so for no longer.
pub const DNS_TTL_S_MAX: u32 = 3600;
/// Questions to DNS under way, all agents together: each is a task of some KiB, and waits for an upstream for [`RESOLVE`] at
/// most.
pub const DNS_QUESTIONS_MAX: usize = 1024;
/// From so many on, an agent may have [`DNS_AGENT_LEAST`] and no more, so that a few can't take all.
pub const DNS_QUESTIONS_SHARED: usize = DNS_QUESTIONS_MAX / 4 * 3;
/// Questions to DNS under way of one agent: a browser begins some tens at once.
pub const DNS_AGENT_MAX: usize = 64;
/// What an agent has also when others ask much: both addresses of two names.
pub const DNS_AGENT_LEAST: usize = 4;
/// Datagrams that are looked at, twice as many as may be under way: what is refused is never waited for.
pub const DNS_DATAGRAMS_MAX: usize = 2 * DNS_QUESTIONS_MAX;
/// Seconds' worth of questions that an agent may ask at once.
pub const DNS_BURST_S: f64 = 4.0;
/// Agents whose questions are counted at once: what each asked in a minute is some KiB.
pub const DNS_AGENTS_MAX: usize = 16 * 1024;
/// What was found for agents and is kept, about, bytes: some ten thousand names.
pub const DNS_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What of it was found for one agent: eight have to work together to push out what others need.
pub const DNS_CACHE_BYTES_SHARE: usize = DNS_CACHE_BYTES_MAX / 8;
/// Largest answer that is kept, about, bytes: the addresses of a large content network several times over.
pub const DNS_CACHED_BYTES_MAX: usize = 16 * 1024;
/// How long it is kept at most: whoever changes addresses doesn't wait longer.
pub const DNS_CACHED: Duration = Duration::from_secs(3600);
/// Questions on one connection, which are answered in their order: clients that ask more connect again.
pub const DNS_STREAM_QUESTIONS_MAX: usize = 256;
/// Between two questions on a connection: what RFC 7766 (6.2.3) calls the order of seconds.
pub const DNS_STREAM_IDLE: Duration = Duration::from_secs(10);
/// For a client to take an answer.
pub const DNS_STREAM_WRITE: Duration = Duration::from_secs(5);
/// For addresses to be learned, by way of control and the datapath role: less than what clients wait for an answer.
pub const DNS_LEARN: Duration = Duration::from_secs(2);
/// The least time for which an address is open that was just told.
pub const DNS_OPEN_LEAST: Duration = Duration::from_secs(10);
/// For answers under way to datagrams, when their socket is given back: what an upstream has to answer in.
pub const DNS_LAST: Duration = RESOLVE;
/// Pause after a datagram could not be received.
pub const DNS_PAUSE: Duration = Duration::from_millis(50);

/// For one question to the keys role.
pub const KEYS_CALL: Duration = Duration::from_secs(2);
/// Questions to the keys role at once; an eighth for each source of each key that is claimed.
pub const KEYS_CALLS_MAX: usize = 64;
/// How often the clock is asked whether a credential has expired at the latest. That the clock was set is noticed apart.
pub const EXPIRY_LOOK: Duration = Duration::from_secs(60);
/// The least time until that look: what expires ends within this of its time.
pub const EXPIRY_LOOK_LEAST: Duration = Duration::from_millis(250);
/// Requests of nobody, on one connection, before it is closed: each leaves audit records. Clients that
/// are asked for a credential have it at the second.
pub const STRANGER_REQUESTS_MAX: u32 = 4;
/// Verified keys remembered: the agents of a large node.
pub const KEYS_CACHE_MAX: usize = 4096;
/// Keys that proved nobody remembered, besides: what clients with a wrong key try again and again.
pub const KEYS_WRONG_MAX: usize = 512;
/// How long a verified key is remembered, so that a replaced secret of the keys role is noticed.
pub const KEYS_CACHE: Duration = Duration::from_secs(300);

/// Certificates for hosts that are read, remembered: what the agents of a large node ask for, at some KiB each. An eighth for each
/// agent.
pub const LEAVES_MAX: usize = 4096;
/// Questions for such certificates at once; an eighth for each agent, which waits for its own.
pub const LEAVES_CALLS_MAX: usize = 64;
/// Hosts remembered that the keys role signs nothing for. An eighth for each agent.
pub const LEAVES_REFUSED_MAX: usize = 1024;
/// How long what the keys role refuses is not asked of it again: whoever changes what it does starts it anew, and waits no longer.
pub const KEYS_REFUSED: Duration = Duration::from_secs(10);
/// How often the log tells of one agent that something fails for it,
pub const TOLD: Duration = Duration::from_secs(10);
/// and of how many agents it tells in that time: nobody reads more.
pub const TOLD_MAX: usize = 64;

/// Most calls of the keys role at once for providers' keys; an eighth for each agent.
pub const VAULT_CALLS_MAX: usize = 64;
/// Most keys of providers that are remembered; an eighth for each agent: more are asked for each time.
pub const VAULT_CACHE_MAX: usize = 256;
/// How long one is: a deleted one is not sent from the next generation on, whatever is remembered.
pub const VAULT_CACHE: Duration = Duration::from_secs(60);
/// How long before its end a certificate is replaced, seconds: longer than a handshake, and than clocks differ by.
pub const LEAF_RENEW_S: i64 = 600;

/// Audit records waiting for control beyond those reserved by open connections: a few seconds of load.
pub const AUDIT_BACKLOG: usize = 16 * 1024;
/// What one agent may have of the backlog at once, besides what its connections reserve: a quarter, as of connections.
pub const AUDIT_BACKLOG_PART: usize = 4;
/// Room for so many records is left where an agent waits for the log: for what all its connections ask meanwhile.
pub const AUDIT_MARGIN: usize = 512;
/// Agents that look at the same time whether there is room: those with other numbers wait for one another.
pub const AUDIT_TURNS: usize = 64;
/// How often who waits for the log looks again, and for how long at most.
pub const AUDIT_PACE: Duration = Duration::from_millis(2);
pub const AUDIT_PACE_MAX: Duration = Duration::from_secs(2);
/// Agents whose shares are counted apart: more than a large node has.
pub const AUDIT_SHARES: usize = 16 * 1024;
/// Agents with a gap of their own in one batch: what more lose is counted in one gap.
pub const AUDIT_LOSERS_MAX: usize = 64;
/// Records in one batch: what comes within [`AUDIT_LINGER`] at the highest rates.
pub const AUDIT_BATCH: usize = 1024;
/// Bytes in one batch: half of what control takes at once.
pub const AUDIT_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that a record takes on average, at most, while it waits: one of ordinary size has a quarter, one that was cut has room.
pub const AUDIT_RECORD_BYTES: usize = 4096;
/// For more records to come after the first one of a batch: nobody waits for what is gathered, and a process that dies loses
/// so much more of what it did last. Control gathers for five times as long before it writes.
pub const AUDIT_LINGER: Duration = Duration::from_millis(10);
/// Batches sent and not yet acknowledged.
pub const AUDIT_UNACKED_MAX: usize = 32;
/// For records still queued when the process ends.
pub const AUDIT_FLUSH: Duration = Duration::from_secs(5);

/// How long a process that has just started waits for something to decide by before it takes connections, which
/// others may serve better. Then it denies them with a reason, rather than leave them without an answer.
pub const FIRST_SNAPSHOT: Duration = Duration::from_secs(5);
/// Longest time for which this process may stand still, or take to apply a generation that came or refuse it, and go on deciding by the
/// one it has: several times what parsing a million prefixes takes, and what a busy machine leaves a process without.
pub const STRAGGLE: Duration = Duration::from_secs(5);
/// How often it shows itself that it does not stand still.
pub const BEAT: Duration = Duration::from_millis(500);
/// First and longest pause before a local role is dialled again.
pub const REDIAL_FIRST: Duration = Duration::from_millis(100);
/// See [`REDIAL_FIRST`]: what is revoked right after control came again has to be known within a second.
pub const REDIAL_MAX: Duration = Duration::from_millis(500);
/// How long listeners that nothing new is steered to are still accepted from: for handshakes that have begun, and
/// what is in their queues.
pub const HANDOVER_OVERLAP: Duration = Duration::from_secs(1);
/// How long listeners of a datapath role that is gone are accepted from, when another hands over its own: as long as a
/// handshake may take, with the five repetitions of `net.ipv4.tcp_synack_retries` (tcp(7)).
pub const HANDOVER_FORMER: Duration = Duration::from_secs(64);
/// Datapath roles whose listeners are kept so at once: more starts within [`HANDOVER_FORMER`] than there are reasons for.
pub const HANDOVER_FORMER_MAX: usize = 4;
/// How often a loop that accepts shows that it does, while nothing comes: twice as often as the datapath role is told.
pub const ACCEPT_BEAT: Duration = Duration::from_millis(500);
/// How often the machine's own addresses are read again, should no change of them be announced.
pub const OWN_ADDRESSES: Duration = Duration::from_secs(10);
/// How long they are not read again after they were: of a host whose interfaces come and go, all are read each time.
pub const OWN_ADDRESSES_PAUSE: Duration = Duration::from_millis(20);
/// Addresses remembered of which the kernel was asked whether they are the machine's: those that are reached, several times over.
pub const OWN_KNOWN_MAX: usize = 16 * 1024;
/// Announcements that are taken together at most; those behind them are for the next look.
pub const OWN_ADDRESSES_ANNOUNCED: usize = 256;

/// Calls of models that wait to be counted, and their bytes.
pub const COUNTED_WAITING_MAX: usize = 1024;
/// See [`COUNTED_WAITING_MAX`].
pub const COUNTED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// For one question to control about limits.
pub const QUOTA_CALL: Duration = Duration::from_secs(2);
/// How long control is not asked again that could not be: those who wait must not each wait that long.
pub const QUOTA_AWAY: Duration = Duration::from_millis(200);
/// How long a request may wait for a limit that throttles: below what common clients wait for an answer.
pub const QUOTA_WAIT_MAX: Duration = Duration::from_secs(10);
/// Requests that wait for one bucket: each holds a connection.
pub const QUOTA_WAITING_MAX: usize = 256;
/// How long units that control granted may be spent.
pub const QUOTA_LIFE: Duration = Duration::from_secs(30);
/// How long before that they go back at the latest, if nobody spent them.
pub const QUOTA_SETTLE: Duration = Duration::from_secs(5);
/// The least that a request waits, or is told to wait.
pub const QUOTA_WAIT_LEAST: Duration = Duration::from_millis(1);
/// Limits that may hold one request: each may be a question to control.
pub const QUOTA_LIMITS_MAX: usize = clawgress_policy::quota::SCOPES_MAX;
/// After how long units that nobody spends go back.
pub const QUOTA_IDLE: Duration = Duration::from_secs(1);
/// Leases that are used up and idle, of which control is told in one turn.
pub const QUOTA_SPENT_MAX: usize = 256;
/// Units of one lot: this part of the burst, so that other workers find the rest,
pub const QUOTA_LOT_PART: u64 = 8;
/// and no more than this: a few milliseconds of a fast agent.
pub const QUOTA_LOT_MAX: u64 = 256;
/// How long an empty bucket is taken for empty without asking again: units of other workers may come back.
pub const QUOTA_SHORT_MAX: Duration = Duration::from_secs(1);
/// Buckets of which this process holds units: what control has room for.
pub const QUOTA_LEASES_MAX: usize = 100_000;

/// The windows of a stream, and of all streams of the next of `count` connections, bytes, where so much is usual. With many it is
/// less, and of the whole a stream never has more than a quarter: some that nobody reads leave the others the rest.
#[must_use]
pub fn windows((of_stream, of_all): (u32, u32), count: usize) -> (u32, u32) {
    let part = WINDOWS_BYTES / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    let of_all = part.max(WINDOW_LEAST).min(of_all);
    (of_stream.min(of_all / WINDOW_STREAMS), of_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many there are, the windows of all are no multiple of what is meant.
    #[test]
    fn windows_shrink_with_the_number_of_connections() {
        const CLIENTS: (u32, u32) = (STREAM_WINDOW, STREAMS_WINDOW);
        const UPSTREAMS: (u32, u32) = (UPSTREAM_STREAM_WINDOW, UPSTREAM_WINDOW);
        assert_eq!(windows(CLIENTS, 0), CLIENTS);
        assert_eq!(windows(CLIENTS, 32), CLIENTS);
        assert_eq!(windows(CLIENTS, 64), (STREAM_WINDOW, STREAMS_WINDOW / 2));
        assert_eq!(windows(CLIENTS, 256), (STREAM_WINDOW / 2, STREAMS_WINDOW / 8));
        assert_eq!(windows(CLIENTS, usize::MAX), (WINDOW_LEAST / 4, WINDOW_LEAST));
        for (usual, n) in
            [CLIENTS, UPSTREAMS].into_iter().flat_map(|usual| (0..5000).map(move |n| (usual, n)))
        {
            let (of_stream, of_all) = windows(usual, n);
            assert!(of_stream * 4 <= of_all && of_stream >= WINDOW_LEAST / 4, "{of_stream} of {of_all}");
        }
        let all: u64 = (1..=5000).map(|n| u64::from(windows(UPSTREAMS, n).1)).sum();
        let usual = 5000 * u64::from(UPSTREAM_WINDOW);
        assert!(all < 10 * u64::from(WINDOWS_BYTES) && all * 30 < usual, "{all} of {usual}");
    }
}
