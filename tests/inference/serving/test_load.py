"""Many clients at once, clients that mean no good, and a kill: all are answered or told, and nothing is left."""

import threading
import time

import pytest

from benchmarks.serving import Held, attack, kill_model, load, model_process, recordings_of, server


@pytest.mark.slow
def test_under_load_attack_and_a_kill_nobody_else_fails_and_nothing_leaks(run_folder, tmp_path, noise, write_audio):
    recordings = recordings_of([write_audio(tmp_path / "talk.wav", noise(4))], 4.0)
    with server(run_folder, "--queue", "6", "--max-upload", "1M") as (port, pid):
        load(port, recordings, 4, 8.0)  # what is made at the first use
        attack(port, recordings[0][0], 300, 10)
        before = Held.by(pid)
        attacks = [attack(port, recordings[0][0], 1500, 60)]
        attacker = threading.Thread(target=lambda: attacks.append(attack(port, recordings[0][0], 300, 20)))
        attacker.start()
        killed = model_process(pid)
        threading.Timer(10.0, kill_model, [pid]).start()
        outcome = load(port, recordings, 16, 20.0)
        attacker.join()
        deadline = time.monotonic() + 60
        while Held.by(pid).file_mib or Held.by(pid).descriptors > before.descriptors:
            assert time.monotonic() < deadline, Held.by(pid)
            time.sleep(0.5)
        after, model = Held.by(pid), model_process(pid)
    assert outcome.statuses["200"] > 10
    assert outcome.statuses["429"] > 0
    assert set(outcome.statuses) <= {"200", "429", "500"}
    assert outcome.statuses["500"] <= 8  # what was answered side by side as the kill came
    assert model not in (None, killed)
    seen = attacks[0].statuses + attacks[1].statuses
    assert set(seen) <= {"200", "400", "404", "408", "413", "429"} | {kind for kind in seen if "broken off" in kind}
    assert seen["400"] > 1000
    assert not [kind for kind in seen if ": 5" in kind or "Timeout" in kind], seen
    assert sum(seen.values()) == 1880
    assert after.memory_mib < before.memory_mib + 60
