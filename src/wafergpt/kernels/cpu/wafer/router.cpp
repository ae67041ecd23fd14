// The router of a PE: every cycle each output port passes one wavelet on; a multicast needs all its ports. The
// lower color goes first, then the port in the order N, E, S, W, ramp.
#include "machine.h"

namespace wafergpt::wafer {

namespace {

// Neighbour of `pe` beyond a port (N, E, S, W); -1 beyond the edge. Routes off the mesh are refused before a run.
inline int64_t beyond(const Machine& m, int64_t pe, int port) {
    const int64_t x = pe % m.width, y = pe / m.width;
    switch (port) {
        case 0: return y > 0 ? pe - m.width : -1;
        case 1: return x + 1 < m.width ? pe + 1 : -1;
        case 2: return y + 1 < m.height ? pe + m.width : -1;
        default: return x > 0 ? pe - 1 : -1;
    }
}

// The queue that a wavelet leaving through `port` enters, and how many it may hold.
struct Target {
    int64_t pe;
    size_t q;
    int64_t depth;
};

inline Target target(const Machine& m, int64_t pe, int64_t color, int port) {
    if (port == kRamp) return {pe, queue(m, pe, color, kCoreQueue), m.core_depth};
    const int64_t to = beyond(m, pe, port);
    return {to, to < 0 ? 0 : queue(m, to, color, (port + 2) & 3), m.link_depth};
}

bool has_space(const Machine& m, int64_t pe, int64_t color, int outs, int32_t cycle) {
    for (int port = 0; port < kPorts; port++) {
        if (!(outs >> port & 1)) continue;
        const Target to = target(m, pe, color, port);
        if (to.pe < 0 || occupied(m, to.q, cycle) >= to.depth) return false;
    }
    return true;
}

void forward(const Machine& m, Watch* watch, int64_t pe, int64_t color, int outs, const Head& head, int32_t cycle) {
    const bool takes = head.control && (head.value & 3u) != CONTROL_RESET_ALL;
    const uint32_t value = takes ? head.value >> 2 : head.value;
    for (int port = 0; port < kPorts; port++) {
        if (!(outs >> port & 1)) continue;
        const Target to = target(m, pe, color, port);
        const int32_t ready = cycle + (port == kRamp ? static_cast<int32_t>(m.ramp_cycles) : 1);
        push(m, to.q, value, ready, head.control);
        if (ready > m.latest[pe]) m.latest[pe] = ready;
        m.created[pe]++;
        m.link_wavelets[pe * kPorts + port]++;
        if (port == kRamp) {
            if (ready < watch[pe].core) watch[pe].core = ready;
        } else {
            __atomic_store_n(&watch[to.pe].pushed[(port + 2) & 3], cycle, __ATOMIC_RELEASE);
        }
    }
    m.removed[pe]++;
}

// What a control wavelet did to this router's switch takes effect in the next cycle.
void advance(const Machine& m, int64_t at, int command) {
    if (command == CONTROL_RESET || command == CONTROL_RESET_ALL) {
        m.position[at] = 0;
    } else if (command == CONTROL_ADVANCE) {
        const int next = m.position[at] + 1;
        if (next < m.n_positions[at]) m.position[at] = static_cast<uint8_t>(next);
        else if (m.ring_mode[at]) m.position[at] = 0;
    }
}

}  // namespace

// Pass on what can be passed on in `cycle`; whether anything moved.
bool router_step(const Machine& m, Watch* watch, int64_t pe, int32_t cycle) {
    const int n = static_cast<int>(m.n_colors) * kPorts;
    int used = 0, n_commands = 0, commands[kPorts * 24][2];
    int32_t next = kNever;
    bool moved = false;
    watch[pe].looked = cycle;
    for (int candidate = 0; candidate < n; candidate++) {
        const int color = candidate / kPorts, in = candidate % kPorts;
        const size_t q = queue(m, pe, color, in);
        const Head head = peek(m, q, cycle);
        if (!head.there) {
            if (head.ready < next) next = head.ready;
            continue;
        }
        next = cycle + 1;
        const int64_t at = pe * m.n_colors + color;
        const int64_t config = at * kPositions + m.position[at];
        if (!(m.route_rx[config] >> in & 1)) continue;
        int outs = m.route_tx[config];
        if (head.control && !(m.ramp_use[at] & 4)) outs &= ~(1 << kRamp);
        if ((outs & used) || !has_space(m, pe, color, outs, cycle)) continue;
        used |= outs;
        if (head.control) {
            commands[n_commands][0] = static_cast<int>(at);
            commands[n_commands++][1] = static_cast<int>(head.value & 3u);
        }
        forward(m, watch, pe, color, outs, head, cycle);
        pop(m, q, cycle);
        if (in == kRamp && cycle + 1 < watch[pe].core) watch[pe].core = cycle + 1;
        mix(m.trace[pe], (static_cast<uint64_t>(cycle) << 8 | 0x80u | static_cast<uint64_t>(candidate)) ^
                             static_cast<uint64_t>(head.value) << 32);
        moved = true;
    }
    for (int i = 0; i < n_commands; i++) advance(m, commands[i][0], commands[i][1]);
    watch[pe].router = next;
    return moved;
}

}  // namespace wafergpt::wafer
