"""A host as the engine sees it over the socket, with models that are fakes."""

from __future__ import annotations

import threading
from multiprocessing import Pipe

from test_model_pool import Models, make_pool

from app.host.host import Host
from app.host.messages import Failed, Heartbeat, LendRoom, ModelInUse, Stop, TakeRoomBack, UseModel
from app.video.decoder import DecoderPool

WAIT_SECONDS = 10


def test_room_comes_back_although_the_limit_to_memory_cannot_be_set() -> None:
    def limit_memory(_: int | None) -> None:
        raise ValueError("current limit exceeds maximum limit")

    decoders: DecoderPool = None  # type: ignore[assignment]  # nothing is decoded
    ours, theirs = Pipe()
    with ours, theirs, make_pool(Models(), 600) as models:
        thread = threading.Thread(target=Host(theirs, models, decoders, limit_memory).serve)
        thread.start()

        def answer() -> object:
            while True:
                assert ours.poll(WAIT_SECONDS)
                if not isinstance(message := ours.recv(), Heartbeat):
                    return message

        ours.send(LendRoom(1))
        assert isinstance(answer(), Failed)
        ours.send(UseModel(2, "large"))
        assert isinstance(answer(), Failed)
        ours.send(TakeRoomBack())
        ours.send(UseModel(3, "large"))
        assert isinstance(answer(), ModelInUse)
        ours.send(Stop())
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
