"""`AsyncClient`: the same calls, awaited."""

from collections.abc import AsyncGenerator, Mapping
from typing import Unpack

from sfumato_protos.v1 import gateway_pb2

from sfumato_client.async_edits import AsyncEdits
from sfumato_client.comparison import ComparisonResult, SettingOptions, build_comparison
from sfumato_client.families import AsyncFamilies
from sfumato_client.prompt_edits import EditPromptOptions, EditPromptResult, build_edit_prompt
from sfumato_client.rejoin import Rejoin
from sfumato_client.requests import GenerateOptions, build_request, without_steps
from sfumato_client.results import GenerateResult


class AsyncClient(AsyncEdits, AsyncFamilies):
    """Calls a gateway from asyncio. An async context manager, of one event loop."""

    async def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> GenerateResult:
        """As Client.generate; cancelling the task ends the request, or what on_disconnect says."""
        result = GenerateResult()
        async for event in self.generate_events(prompt, **without_steps(options)):
            result.add(event)
        return result

    def generate_events(
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[gateway_pb2.GenerateResponse]:
        """As Client.generate_events. Close what is not read to its end: contextlib.aclosing."""
        return self.events_of(build_request(prompt, options))

    def events_of(self, request: gateway_pb2.GenerateRequest) -> AsyncGenerator[gateway_pb2.GenerateResponse]:
        """As generate_events, of a message."""
        return self._events(self._gateway.Generate, Rejoin(request, self.timeout))

    async def edit_prompt(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> EditPromptResult:
        """As Client.edit_prompt."""
        result = EditPromptResult()
        async for event in self.edit_prompt_events(prompt, target_prompt, **without_steps(options)):
            result.add(event)
        return result

    def edit_prompt_events(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> AsyncGenerator[gateway_pb2.EditPromptResponse]:
        """The events as they come; as generate_events."""
        request = build_edit_prompt(prompt, target_prompt, options)
        return self._events(self._gateway.EditPrompt, Rejoin(request, self.timeout))

    async def compare(
        self, prompt: str, settings: Mapping[str, SettingOptions], **options: Unpack[GenerateOptions]
    ) -> ComparisonResult:
        """As Client.compare."""
        result = ComparisonResult()
        async for event in self.compare_events(prompt, settings, **without_steps(options)):
            result.add(event)
        return result

    def compare_events(
        self, prompt: str, settings: Mapping[str, SettingOptions], **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[gateway_pb2.CompareResponse]:
        """The events as they come; as generate_events."""
        request = build_comparison(prompt, settings, options)
        return self._events(self._gateway.Compare, Rejoin(request, self.timeout))
